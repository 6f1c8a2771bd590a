"""How much memory streaming takes at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RingSizes:
    """What streaming takes in memory at a time: slots for layers without their experts, and places for experts.

    Attributes:
        layer_bytes: of a slot, which holds any layer without its experts.
        expert_bytes: of a place, which holds any expert.
        num_experts: of a layer.
        largest_bytes: of the largest layer with all of its experts.
    """

    layer_bytes: int
    expert_bytes: int
    num_experts: int
    largest_bytes: int

    @classmethod
    def of(cls, layers: Mapping[int, int], experts: Mapping[int, Sequence[int]]) -> RingSizes:
        """Returns the sizes for layers of so many bytes and their experts of so many bytes each."""
        expert_bytes = max((max(sizes) for sizes in experts.values()), default=0)
        return cls(
            layer_bytes=max(layers.values()),
            expert_bytes=expert_bytes,
            num_experts=max(map(len, experts.values()), default=0),
            largest_bytes=max(size + expert_bytes * len(experts.get(layer, ())) for layer, size in layers.items()),
        )

    def num_places(self, num_slots: int) -> int:
        """Returns how many experts fit beside slots in the memory of so many whole layers: at least those of one."""
        if not self.num_experts:
            return 0
        return max(self.num_experts, num_slots * (self.largest_bytes - self.layer_bytes) // self.expert_bytes)

    def num_bytes(self, num_slots: int) -> int:
        """Returns what slots and places take."""
        return num_slots * self.layer_bytes + self.num_places(num_slots) * self.expert_bytes
