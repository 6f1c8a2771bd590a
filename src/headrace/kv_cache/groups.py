"""A KV group: layers whose keys and values have one shape and one rule, so they share one block table."""

from __future__ import annotations

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
