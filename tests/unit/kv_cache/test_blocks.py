from __future__ import annotations

import pytest

from headrace.kv_cache.blocks import BlockPool


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(3)


def test_a_released_block_is_free_again(pool: BlockPool) -> None:
    block = pool.allocate()
    pool.release(block)
    assert pool.num_free == 3


def test_a_shared_block_is_free_after_its_last_release(pool: BlockPool) -> None:
    block = pool.allocate()
    pool.acquire(block)
    pool.release(block)
    assert pool.num_free == 2
    pool.release(block)
    assert pool.num_free == 3


def test_a_kept_block_waits_to_be_found_or_dropped(pool: BlockPool) -> None:
    block = pool.allocate()
    pool.keep(block)
    pool.release(block)
    assert (pool.num_free, pool.num_available, pool.oldest_idle()) == (2, 3, block)
    pool.drop(block)
    assert pool.num_free == 3


def test_the_oldest_idle_block_is_the_one_unused_for_longest(pool: BlockPool) -> None:
    first, second = pool.allocate(), pool.allocate()
    for block in (first, second):
        pool.keep(block)
        pool.release(block)
    pool.acquire(first)
    pool.release(first)
    assert pool.oldest_idle() == second


def test_a_held_block_is_not_freed_before_its_transfer_completes(pool: BlockPool) -> None:
    block = pool.allocate()
    pool.begin_hold(block)
    pool.release(block)
    assert pool.num_available == 2
    pool.complete_hold(block)
    assert pool.num_free == 3


def test_a_held_block_cannot_be_evicted(pool: BlockPool) -> None:
    block = pool.allocate()
    pool.keep(block)
    pool.begin_hold(block)
    pool.release(block)
    with pytest.raises(AssertionError, match="no block is idle"):
        pool.oldest_idle()


def test_releasing_a_hold_as_if_it_were_a_use_raises(pool: BlockPool) -> None:
    block = pool.allocate()
    pool.begin_hold(block)
    pool.release(block)
    with pytest.raises(AssertionError, match="released by nobody"):
        pool.release(block)


def test_sharing_a_free_block_raises(pool: BlockPool) -> None:
    with pytest.raises(AssertionError, match="free and cannot be shared"):
        pool.acquire(0)


def test_allocating_without_room_raises() -> None:
    with pytest.raises(AssertionError, match="no block is free"):
        BlockPool(0).allocate()


def test_the_check_says_which_numbers_do_not_add_up(pool: BlockPool) -> None:
    block = pool.allocate()
    assert pool.check_integrity({block: 2}, set()) == [f"block {block}: counts 1 users, has 2"]
