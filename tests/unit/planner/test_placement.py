"""What memory cannot hold is placed so that the most rows advance per second."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from headrace.planner.placement import Demand, Placement, Rates, Shares, place, spread

LAYERS = Demand(part_bytes=[100] * 10, kv_layer_bytes=[1] * 10, row_bytes=0, max_rows=1000, operations_per_token=1000)
SLOW_DISK = Rates(below=10, matrix=1e9)
SLOW_CPU = Rates(below=1e6, matrix=1000)


def test_everything_stays_where_there_is_room_for_it_and_for_all_rows() -> None:
    assert place(LAYERS, SLOW_DISK, 1000 + 1000 * 10).resident == frozenset(range(10))


def test_while_reading_takes_longest_memory_goes_to_rows() -> None:
    assert place(LAYERS, SLOW_DISK, 500).resident == frozenset()


def test_memory_that_rows_cannot_use_goes_to_weights() -> None:
    few = replace(LAYERS, max_rows=20)
    assert len(place(few, SLOW_DISK, 500).resident) == 3


def test_the_rows_of_a_job_run_in_as_few_turns_as_pay() -> None:
    """48 rows of 10 fit where KV of a layer lies on the disk; 44 without: the last 4 would take a turn of their own."""
    seats = replace(LAYERS, max_rows=48, room_below_bytes=10**6, written_share=0.1)
    assert place(seats, SLOW_DISK, 440).kv_below == frozenset()
    assert len(place(replace(seats, all_rows=48), SLOW_DISK, 440).kv_below) == 1
    assert place(replace(seats, all_rows=44), SLOW_DISK, 440).kv_below == frozenset()


def test_where_computing_takes_longest_no_weights_take_the_place_of_rows() -> None:
    assert place(LAYERS, SLOW_CPU, 600).resident == frozenset()
    assert len(place(replace(LAYERS, max_rows=20), SLOW_CPU, 600).resident) == 4


def test_a_row_that_memory_barely_holds_still_runs() -> None:
    assert place(LAYERS, SLOW_DISK, 5).resident == frozenset()


WITH_DISK = replace(LAYERS, slab_bytes=50, room_below_bytes=10**6, written_share=0.1)


def test_kv_goes_to_disk_where_reading_weights_takes_longest() -> None:
    found = place(WITH_DISK, SLOW_DISK, 500)
    assert len(found.kv_below) >= 8 and not found.resident


def test_kv_stays_in_memory_where_computing_takes_longest() -> None:
    assert not place(WITH_DISK, SLOW_CPU, 600).kv_below


def test_kv_of_a_row_that_memory_does_not_hold_goes_to_disk_whatever_it_costs() -> None:
    long = replace(WITH_DISK, longest_row=60.0)
    assert not place(long, SLOW_CPU, 600).kv_below
    assert len(place(long, SLOW_CPU, 599).kv_below) > 0
    assert place(replace(long, room_below_bytes=100), SLOW_CPU, 300) == Placement()


def test_no_more_kv_goes_to_disk_than_there_is_room_for() -> None:
    assert not place(replace(WITH_DISK, room_below_bytes=5), SLOW_DISK, 500).kv_below


def test_shares_that_are_asked_for_are_kept() -> None:
    found = place(WITH_DISK, SLOW_CPU, 10_000, Shares(weights=0.3, kv=0.5))
    assert (len(found.resident), len(found.kv_below)) == (3, 5)
    assert place(WITH_DISK, SLOW_CPU, 10_000, Shares(weights=1.0, kv=1.0)) == Placement(resident=frozenset(range(10)))


def test_shares_that_memory_cannot_hold_are_returned_for_the_budget_to_refuse() -> None:
    assert len(place(WITH_DISK, SLOW_CPU, 200, Shares(weights=1.0)).resident) == 10


@pytest.mark.parametrize("num_parts", [1, 2, 7, 33])
def test_resident_parts_are_spread_evenly(num_parts: int) -> None:
    for count in range(num_parts + 1):
        chosen = sorted(spread(num_parts, count))
        assert len(chosen) == count
        gaps = [b - a for a, b in pairwise(chosen)]
        assert not gaps or max(gaps) - min(gaps) <= 1
