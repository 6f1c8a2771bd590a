"""Which tokens attend together: every token sees each of its positions once, in order; what rows share is read once."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from headrace.attention.ragged import RaggedLayout
from headrace.kernels.library import usable
from tests.unit.attention.layouts import CPU
from tests.unit.kernels.visits import visits

pytestmark = pytest.mark.skipif(not usable(), reason="no compiler")
HEADS = [(32, 8), (32, 32), (8, 1), (71, 1), (12, 2)]
KEYS, QUERIES = 32, 128
"""Of a tile."""


def layout_of(tables: list[list[int]], starts: list[int], lengths: list[int], block_tokens: int = 32) -> RaggedLayout:
    table = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int64)
    for row, blocks in enumerate(tables):
        table[row, : len(blocks)] = blocks
    return RaggedLayout.build(
        block_tokens=block_tokens,
        starts=np.array(starts),
        lengths=np.array(lengths),
        block_table=table,
        device=CPU,
    )


def decoding_rows(num_shared: int, num_own: list[int]) -> RaggedLayout:
    """Rows whose next token is the last of their blocks; the first `num_shared` are those of all."""
    fresh = iter(range(num_shared, 10_000))
    tables = [[*range(num_shared), *(next(fresh) for _ in range(own))] for own in num_own]
    return layout_of(tables, [len(table) * KEYS - 1 for table in tables], [1] * len(tables))


def num_visits(layout: RaggedLayout, num_heads: int, num_kv_heads: int, num_threads: int = 1) -> int:
    found = visits(layout, num_heads=num_heads, num_kv_heads=num_kv_heads, num_threads=num_threads)
    return len(np.unique(found[:, 0]))


def random_layout(seed: int) -> tuple[RaggedLayout, int | None]:
    """Rows with any tables from few blocks, equal here and there, of all kinds of chunks, and a window or none."""
    draw = random.Random(seed)
    block_tokens, window = draw.choice([4, 16, 32, 48, 64, 128]), draw.choice([None, None, 1, 30, 64, 100])
    tables, starts, lengths = [], [], []
    for row in range(draw.randrange(1, 14)):
        start, length = draw.choice([0, 5, 95, draw.randrange(300)]), draw.choice([1, 1, 1, 2, 5, 70])
        num_blocks = -(-(start + length) // block_tokens)
        table = list(tables[draw.randrange(row)]) if row else []
        table = (table + [draw.randrange(3) for _ in range(num_blocks)])[:num_blocks]
        for _ in range(draw.choice([0, 0, 1, 3])):
            table[draw.randrange(num_blocks)] = draw.randrange(3)
        first = 0 if window is None else max(0, start - window + 1) // block_tokens
        tables.append([-1 if column < first else max(block, 0) for column, block in enumerate(table)])
        starts.append(start)
        lengths.append(length)
    return layout_of(tables, starts, lengths, block_tokens), window


def check_token(layout: RaggedLayout, row: int, visited: npt.NDArray[np.int64], lowest: int, newest: int) -> None:
    """Visits of one token of `row`, in order, show it the positions from `lowest` to `newest`, in its own blocks."""
    assert all(earlier < later for earlier, later in pairwise(visited[:, 6] // KEYS))
    seen = []
    for _, _, _, token_lowest, token_newest, table_row, first, stop in visited.tolist():
        assert (token_lowest, token_newest) == (lowest, newest)
        assert first // KEYS == (stop - 1) // KEYS
        positions = np.arange(first, stop)
        assert (layout.block_table[table_row, positions // layout.block_tokens] >= 0).all()
        own = positions[(positions >= lowest) & (positions <= newest)]
        of_rows = layout.block_table[:, own // layout.block_tokens]
        assert (of_rows[table_row] == of_rows[row]).all()
        seen += own.tolist()
    assert seen == list(range(lowest, newest + 1))


@pytest.mark.parametrize("seed", range(60))
def test_every_token_sees_each_of_its_positions_once_and_in_order(seed: int) -> None:
    layout, window = random_layout(seed)
    num_heads, num_kv_heads = HEADS[seed % len(HEADS)]
    found = visits(layout, num_heads=num_heads, num_kv_heads=num_kv_heads, window=window, num_threads=1 + seed // 7 % 3)
    place = 0
    for row, (start, length) in enumerate(zip(layout.starts.tolist(), layout.lengths.tolist(), strict=True)):
        for position in range(start, start + length):
            visited = found[found[:, 2] == place]
            check_token(layout, row, visited, 0 if window is None else max(0, position - window + 1), position)
            assert len(set(visited[:, 1].tolist())) == 1, "a token is in one party"
            place += 1
    together = min(num_heads // num_kv_heads, 32)
    assert max(Counter(found[:, 0].tolist()).values()) * together <= QUERIES


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "rows_together"), [(32, 8, 32), (32, 32, 64), (71, 1, 4)])
def test_tiles_that_rows_share_are_visited_once_for_as_many_queries_as_fit(
    num_heads: int, num_kv_heads: int, rows_together: int
) -> None:
    layout = decoding_rows(37, [2] * 64)
    assert num_visits(layout, num_heads, num_kv_heads) == 64 // rows_together * 37 + 64 * 2


def test_tokens_of_a_prompt_are_not_in_tiles_that_they_do_not_see() -> None:
    layout = layout_of([[*range(5)]], [20], [128])
    found = visits(layout, num_heads=1, num_kv_heads=1, window=40)
    assert len(np.unique(found[:, 1])) == 1
    lowest, newest, tiles = found[:, 3], found[:, 4], found[:, 6] // KEYS
    assert ((lowest // KEYS <= tiles) & (tiles <= newest // KEYS)).all()


def test_rows_that_share_nothing_are_visited_one_by_one() -> None:
    layout = decoding_rows(0, [3, 5, 1, 4])
    found = visits(layout, num_heads=32, num_kv_heads=8)
    assert len(np.unique(found[:, 1])) == 4
    assert len(found) == len(np.unique(found[:, 0])) == 13


def test_of_a_tree_of_prefixes_every_branch_is_visited_once() -> None:
    trunk, left, right = [0, 1], [2, 3, 4], [5, 6, 7, 8]
    tables = [trunk + right + [20], trunk + left + [21], trunk + right + [22], trunk + left + [23], [9, 30]]
    layout = layout_of(tables, [len(table) * KEYS - 1 for table in tables], [1] * 5)
    assert num_visits(layout, 32, 8) == 2 + 3 + 4 + 4 + 2


def test_rows_whose_windows_begin_elsewhere_share_what_both_see() -> None:
    tables = [[-1, -1, 2, 3, 4, 5, 20], [-1, 1, 2, 3, 4, 5, 21]]
    layout = layout_of(tables, [6 * KEYS + 20, 6 * KEYS + 3], [1, 1])
    found = visits(layout, num_heads=32, num_kv_heads=8, window=4 * KEYS + 10)
    # The first sees from position 75 on, in tile 2; the second from 58 on, in tile 1.
    assert Counter(found[:, 6] // KEYS) == {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2}
    assert len(np.unique(found[:, 0])) == 1 + 2 + 3 + 2


def test_a_prompt_under_way_shares_with_rows_that_go_on_behind_it() -> None:
    layout = layout_of([[0, 1, 2], [0, 1, 2, 3]], [64, 100], [4, 1])
    assert num_visits(layout, 32, 8) == 3 + 1


def test_rows_are_together_only_as_far_as_every_thread_has_work() -> None:
    layout = decoding_rows(10, [1] * 8)
    num_parties = {
        num_threads: len(np.unique(visits(layout, num_heads=8, num_kv_heads=2, num_threads=num_threads)[:, 1]))
        for num_threads in (1, 2, 4, 64)
    }
    assert num_parties == {1: 1, 2: 1, 4: 2, 64: 8}
