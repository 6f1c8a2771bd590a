"""What memory cannot hold is streamed so that the most rows advance per second."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from headrace.planner.placement import Demand, Rates, resident_parts, spread

LAYERS = Demand(part_bytes=[100] * 10, row_bytes=10, max_rows=1000, operations_per_token=1000)
SLOW_DISK = Rates(disk=10, matrix=1e9)
SLOW_CPU = Rates(disk=1e6, matrix=1000)


def test_everything_stays_where_there_is_room_for_it_and_for_all_rows() -> None:
    assert resident_parts(LAYERS, SLOW_DISK, 1000 + 1000 * 10) == frozenset(range(10))


def test_while_reading_takes_longest_memory_goes_to_rows() -> None:
    assert resident_parts(LAYERS, SLOW_DISK, 500) == frozenset()


def test_memory_that_rows_cannot_use_goes_to_weights() -> None:
    few = replace(LAYERS, max_rows=20)
    assert len(resident_parts(few, SLOW_DISK, 500)) == 3


def test_where_computing_takes_longest_no_weights_take_the_place_of_rows() -> None:
    assert resident_parts(LAYERS, SLOW_CPU, 600) == frozenset()
    assert len(resident_parts(replace(LAYERS, max_rows=20), SLOW_CPU, 600)) == 4


def test_a_row_that_memory_barely_holds_still_runs() -> None:
    assert resident_parts(LAYERS, SLOW_DISK, 5) == frozenset()


@pytest.mark.parametrize("num_parts", [1, 2, 7, 33])
def test_resident_parts_are_spread_evenly(num_parts: int) -> None:
    for count in range(num_parts + 1):
        chosen = sorted(spread(num_parts, count))
        assert len(chosen) == count
        gaps = [b - a for a, b in pairwise(chosen)]
        assert not gaps or max(gaps) - min(gaps) <= 1
