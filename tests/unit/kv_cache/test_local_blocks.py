"""Which blocks a micro-batch reads, which of them only after others, and what they are called in its slab."""

from __future__ import annotations

import numpy as np

from headrace.kv_cache.local_blocks import LocalBlocks, number_blocks
from headrace.scheduler.sweep import Chunk


def chunk(start: int, stop: int, *table: int) -> Chunk:
    return Chunk(sequence_id=0, start=start, token_ids=(0,) * (stop - start), block_tables=(table,), samples=False)


def names(local: LocalBlocks, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    """The pool's numbers of local ones."""
    return local.blocks[numbers].tolist()


def test_a_decoding_row_reads_its_blocks_and_writes_the_last() -> None:
    (local,) = number_blocks([[chunk(9, 10, 7, 3, 5)]], 0, 4)
    assert local.blocks.tolist() == [3, 5, 7]
    assert names(local, local.early) == [3, 5, 7]
    assert names(local, local.written) == [5]
    assert not len(local.late)


def test_blocks_that_begin_in_this_chunk_are_not_read() -> None:
    (local,) = number_blocks([[chunk(4, 12, 7, 3, 5)]], 0, 4)
    assert names(local, local.early) == [7]
    assert names(local, local.written) == [3, 5]


def test_what_an_earlier_micro_batch_writes_comes_late() -> None:
    first, second = number_blocks([[chunk(0, 6, 1, 2)], [chunk(6, 9, 1, 2, 3), chunk(4, 5, 9, 8)]], 0, 4)
    assert names(first, first.written) == [1, 2] and not len(first.early)
    assert names(second, second.late) == [1, 2]
    assert names(second, second.early) == [9]
    assert names(second, second.written) == [2, 3, 8]


def test_what_the_same_micro_batch_writes_is_not_brought() -> None:
    (local,) = number_blocks([[chunk(0, 8, 1, 2), chunk(8, 9, 1, 2, 3)]], 0, 4)
    assert not len(local.early) and not len(local.late)
    assert local.blocks.tolist() == [1, 2, 3]


def test_tables_are_translated_and_what_is_not_touched_is_absent() -> None:
    (local,) = number_blocks([[chunk(9, 10, -1, 30, 50, 70)]], 0, 4)
    assert local.translate(np.array([[-1, 30, 50, 70], [30, -1, -1, -1]])).tolist() == [[-1, 0, 1, -1], [0, -1, -1, -1]]
