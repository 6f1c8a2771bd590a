from __future__ import annotations

import pytest

from headrace.kv_cache.blocks import BlockPool
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.tables import BlockTable, StateTable, make_table

FULL = KVGroup(group_id=0, layers=(0,), kind="full")
SLIDING = KVGroup(group_id=0, layers=(0,), kind="sliding", window=5)
STATE = KVGroup(group_id=0, layers=(0,), kind="state")


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(6)


def test_the_kind_of_a_group_decides_the_kind_of_table(pool: BlockPool) -> None:
    tables = [make_table(group, pool, 4, []) for group in (FULL, SLIDING, STATE)]
    assert [type(table) for table in tables] == [BlockTable, BlockTable, StateTable]


def test_a_table_reaches_as_far_as_the_pool_has_blocks(pool: BlockPool) -> None:
    table = BlockTable(FULL, pool, 4, [])
    assert (table.num_missing(9), table.reach(9), table.reach(100)) == (3, 9, 24)
    table.extend(2)
    assert (table.num_missing(9), table.reach(100)) == (1, 24)


def test_abandoning_releases_what_came_after_the_last_commit(pool: BlockPool) -> None:
    table = BlockTable(FULL, pool, 4, [])
    table.extend(1)
    table.commit(4)
    before = table.view()
    table.extend(2)
    table.abandon()
    assert (table.view(), pool.num_free) == (before, 5)


def test_committing_releases_what_the_window_has_passed(pool: BlockPool) -> None:
    table = BlockTable(SLIDING, pool, 4, [])
    table.extend(3)
    blocks = table.view()
    table.commit(9)  # position 9 reads 5 .. 9
    assert (table.view(), pool.num_free) == ((-1, *blocks[1:]), 4)
    table.free()
    assert pool.num_free == 6


def test_an_exchanged_block_is_released(pool: BlockPool) -> None:
    table = BlockTable(FULL, pool, 4, [])
    table.extend(1)
    other = pool.allocate()
    table.replace(0, other)
    assert (table.view(), pool.num_free) == ((other,), 5)


def test_a_committed_state_needs_one_slot_however_many_chunks_there_were(pool: BlockPool) -> None:
    table = StateTable(pool, snapshot=-1)
    table.extend(1)
    assert table.view() == (-1, table.last_target)
    first = table.last_target
    table.extend(1)
    assert table.view() == (first, table.last_target)
    current = table.last_target
    table.commit(8)
    assert (list(table.used_blocks()), pool.num_free) == ([current], 5)


def test_an_abandoned_state_is_the_one_before(pool: BlockPool) -> None:
    snapshot = pool.allocate()
    table = StateTable(pool, snapshot)
    table.extend(1)
    table.abandon()
    assert (list(table.used_blocks()), pool.num_free) == ([snapshot], 5)
