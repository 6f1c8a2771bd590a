"""The blocks that a micro-batch needs of KV that lives elsewhere, numbered anew for the slab they are brought into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.kv_cache.prefix_tree import ABSENT

Integers = npt.NDArray[np.int64]


class ChunkOfSequence(Protocol):
    """What is looked at of a chunk; see `headrace.scheduler.sweep.Chunk`."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def block_tables(self) -> tuple[tuple[int, ...], ...]: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LocalBlocks:
    """One micro-batch's blocks in one group. Local number i is block `blocks[i]` of the pool.

    Attributes:
        blocks: rising, so that neighbours at home are neighbours in the slab.
        early: local numbers of what earlier sweeps wrote.
        late: local numbers of what an earlier micro-batch of the same sweep writes: to be brought only after it.
        written: local numbers of what this micro-batch writes.
    """

    blocks: Integers
    early: Integers
    late: Integers
    written: Integers

    def translate(self, block_table: Integers) -> Integers:
        """Returns the table with local numbers; ABSENT for blocks that the micro-batch does not touch."""
        if not len(self.blocks):
            return np.full_like(block_table, ABSENT)
        local = np.minimum(np.searchsorted(self.blocks, block_table), len(self.blocks) - 1)
        return np.where(self.blocks[local] == block_table, local, ABSENT)


def number_blocks(
    micro_batches: Sequence[Sequence[ChunkOfSequence]], group_id: int, block_tokens: int
) -> list[LocalBlocks]:
    """Returns the blocks of each micro-batch of a sweep in one group that is no state group."""
    written_before = np.empty(0, dtype=np.int64)
    found = []
    for chunks in micro_batches:
        read: list[int] = []
        fresh: list[int] = []
        written: list[int] = []
        for chunk in chunks:
            table = chunk.block_tables[group_id]
            first_fresh, end = -(-chunk.start // block_tokens), -(-chunk.stop // block_tokens)
            read += table[:first_fresh]
            fresh += table[first_fresh:end]
            written += table[chunk.start // block_tokens : end]
        brought = np.setdiff1d(_numbers(read), _numbers(fresh))
        is_late = np.isin(brought, written_before, assume_unique=True)
        blocks = np.union1d(brought, _numbers(written))
        found.append(
            LocalBlocks(
                blocks=blocks,
                early=np.searchsorted(blocks, brought[~is_late]),
                late=np.searchsorted(blocks, brought[is_late]),
                written=np.searchsorted(blocks, _numbers(written)),
            )
        )
        written_before = np.union1d(written_before, _numbers(written))
    return found


def _numbers(blocks: Sequence[int]) -> Integers:
    """The distinct blocks, rising."""
    return np.setdiff1d(np.asarray(blocks, dtype=np.int64), ABSENT)
