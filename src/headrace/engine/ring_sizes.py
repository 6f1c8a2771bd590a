"""How much memory streaming takes at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RingSizes:
    """What streaming takes in memory at a time: slots for parts without their experts, and places for experts.

    Attributes:
        part_bytes: of a slot, which holds any part without its experts.
        expert_bytes: of a place, which holds any expert.
        num_experts: of a layer.
        largest_bytes: of the largest part with all of its experts.
    """

    part_bytes: int
    expert_bytes: int
    num_experts: int
    largest_bytes: int

    @classmethod
    def of(cls, parts: Iterable[tuple[int, Sequence[int]]]) -> RingSizes:
        """Returns the sizes for parts of so many bytes, and so many of each of their experts."""
        parts = list(parts)
        expert_bytes = max((size for _, experts in parts for size in experts), default=0)
        return cls(
            part_bytes=max(size for size, _ in parts),
            expert_bytes=expert_bytes,
            num_experts=max(len(experts) for _, experts in parts),
            largest_bytes=max(size + expert_bytes * len(experts) for size, experts in parts),
        )

    def num_places(self, num_slots: int) -> int:
        """Returns how many experts fit beside slots in the memory of so many whole parts: at least those of one."""
        if not self.num_experts:
            return 0
        return max(self.num_experts, num_slots * (self.largest_bytes - self.part_bytes) // self.expert_bytes)

    def num_bytes(self, num_slots: int, num_places: int) -> int:
        """Returns what slots and places take."""
        return num_slots * self.part_bytes + num_places * self.expert_bytes
