"""Blocks of one KV group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCopy:
    """The first `num_tokens` slots of block `source` are copied into block `target`, in every layer of the group.

    In a state group a block is one slot and the whole state is copied.
    """

    group: int
    source: int
    target: int
    num_tokens: int
