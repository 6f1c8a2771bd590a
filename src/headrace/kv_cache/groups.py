"""A KV group: layers whose keys and values have one shape and one rule, so they share one block table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

GroupKind = Literal["full", "sliding", "state"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KVGroup:
    """One table of blocks for all of its layers.

    Attributes:
        group_id: place of the group in every per-group tuple (`Chunk.block_tables`, `num_blocks`).
        layers: indices of the layers that share the table.
        kind: `full`: a token reads all positions before it and its own. `sliding`: a token at position p reads the
            positions > p - window. `state`: a block is one slot that holds the recurrent (and convolution) state after
            a sequence's last committed token; earlier states are gone unless a snapshot was kept.
        window: number of positions a token of a sliding group reads, itself included; None for the other kinds.
    """

    group_id: int
    layers: tuple[int, ...]
    kind: GroupKind
    window: int | None = None

    def __post_init__(self) -> None:
        assert (self.kind == "sliding") == (self.window is not None), (
            "a window belongs to sliding groups, and only there"
        )
        assert self.window is None or self.window > 0, f"window {self.window} reads nothing"

    def first_needed_block(self, num_computed: int, block_tokens: int) -> int:
        """Returns the first of the blocks before position `num_computed` that a token there, or one after it, reads.

        In a state group it is the last of them, as if the snapshot after it were a block.
        """
        if self.kind == "state":
            return max(0, num_computed // block_tokens - 1)
        return 0 if self.window is None else max(0, num_computed - self.window + 1) // block_tokens

    def window_blocks(self, block_tokens: int) -> int:
        """Returns over how many blocks the positions that one token reads can spread; sys.maxsize without a window."""
        return sys.maxsize if self.window is None else -(-(self.window - 1) // block_tokens) + 1

    def capacity_tokens(self, num_blocks: int, block_tokens: int) -> int:
        """Returns up to how many tokens one sequence can always be computed, alone; sys.maxsize if without end."""
        if self.kind == "state":
            return sys.maxsize if num_blocks >= 2 else 0
        return sys.maxsize if num_blocks >= self.window_blocks(block_tokens) else num_blocks * block_tokens
