"""How many KV blocks of each group a number of bytes buys. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.kv_cache.groups import KVGroup

SNAPSHOTS_PER_SEQUENCE = 1
_SEARCH_STEPS = 40
_SLOTS_PER_SEQUENCE = 2 + SNAPSHOTS_PER_SEQUENCE
"""A running sequence reads one state slot and writes another; prefix sharing keeps snapshots beside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupDemand:
    """One group, and what a block of it costs over all of its layers."""

    group: KVGroup
    block_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolPlanner:
    """Splits bytes over groups in proportion to what sequences of a typical length need in each.

    Attributes:
        sweep_tokens: a sliding group holds, beside its window, what one sweep adds.
    """

    demands: Sequence[GroupDemand]
    block_tokens: int
    sweep_tokens: int

    def blocks_for(self, num_sequences: int, num_tokens: int) -> list[int]:
        """Returns the blocks of each group for `num_sequences` sequences of `num_tokens` tokens."""
        return [num_sequences * self._blocks(demand.group, num_tokens) for demand in self.demands]

    def bytes_for(self, num_sequences: int, num_tokens: int) -> int:
        """Returns the bytes of `blocks_for`."""
        blocks = self.blocks_for(num_sequences, num_tokens)
        return sum(count * demand.block_bytes for count, demand in zip(blocks, self.demands, strict=True))

    def longest_sequence(self, num_bytes: int, max_tokens: int) -> int:
        """Returns the most tokens, up to `max_tokens`, that one sequence alone can have in `num_bytes`."""
        low, high = 0, max_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes_for(1, middle) <= num_bytes else (low, middle - 1)
        return low

    def split(self, num_bytes: int, *, max_sequences: int, typical_tokens: int, max_tokens: int) -> list[int]:
        """Returns the blocks of each group that `num_bytes` buys, no more than the job could ever use.

        One sequence of `max_tokens` always fits, since `longest_sequence` allowed it.
        """
        low, high = 0.0, num_bytes / max(1, self.bytes_for(1, typical_tokens))
        for _ in range(_SEARCH_STEPS):
            middle = (low + high) / 2
            fits = self._bytes(self._share(middle, typical_tokens, max_tokens)) <= num_bytes
            low, high = (middle, high) if fits else (low, middle)
        useful = self.blocks_for(max_sequences, max_tokens)
        return [min(pair) for pair in zip(self._share(low, typical_tokens, max_tokens), useful, strict=True)]

    def _share(self, num_sequences: float, typical_tokens: int, max_tokens: int) -> list[int]:
        """Blocks for `num_sequences` typical sequences, but in every group enough for the longest one."""
        typical, alone = self.blocks_for(1, typical_tokens), self.blocks_for(1, max_tokens)
        return [max(int(num_sequences * blocks), least) for blocks, least in zip(typical, alone, strict=True)]

    def _bytes(self, blocks: Sequence[int]) -> int:
        return sum(count * demand.block_bytes for count, demand in zip(blocks, self.demands, strict=True))

    def _blocks(self, group: KVGroup, num_tokens: int) -> int:
        if group.kind == "state":
            return _SLOTS_PER_SEQUENCE
        kept = num_tokens
        if group.window is not None:
            kept = min(num_tokens, group.window + self.sweep_tokens + self.block_tokens)
        return -(-kept // self.block_tokens)
