from __future__ import annotations

import sys

import pytest

from headrace.kv_cache.groups import KVGroup

FULL = KVGroup(group_id=0, layers=(0,), kind="full")
STATE = KVGroup(group_id=0, layers=(0,), kind="state")


def sliding(window: int) -> KVGroup:
    return KVGroup(group_id=0, layers=(0,), kind="sliding", window=window)


def test_a_full_group_needs_every_block() -> None:
    assert FULL.first_needed_block(1000, 4) == 0


def test_a_state_group_needs_only_what_follows_its_last_block() -> None:
    assert STATE.first_needed_block(12, 4) == 2


@pytest.mark.parametrize(
    ("num_computed", "first_needed"),
    [(0, 0), (7, 0), (8, 0), (9, 1), (12, 1), (13, 2)],  # with window 6, position 9 reads 4 .. 9: block 0 is dead
)
def test_a_sliding_group_needs_the_blocks_inside_its_window(num_computed: int, first_needed: int) -> None:
    assert sliding(6).first_needed_block(num_computed, 4) == first_needed


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("window", range(1, 12))
def test_no_window_spreads_over_more_blocks_than_is_said(window: int, block_tokens: int) -> None:
    spreads = [
        position // block_tokens - max(0, position - window + 1) // block_tokens + 1 for position in range(5 * window)
    ]
    assert max(spreads) == sliding(window).window_blocks(block_tokens)


def test_the_capacity_of_a_full_group_is_all_of_its_blocks() -> None:
    assert FULL.capacity_tokens(7, 4) == 28


def test_a_window_that_fits_has_no_end() -> None:
    assert sliding(6).capacity_tokens(3, 4) == sys.maxsize
    assert sliding(6).capacity_tokens(2, 4) == 8


def test_a_state_needs_a_slot_to_read_and_a_slot_to_write() -> None:
    assert STATE.capacity_tokens(2, 4) == sys.maxsize
    assert STATE.capacity_tokens(1, 4) == 0
