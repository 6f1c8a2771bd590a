"""What streaming takes is what it would take if layers were brought whole."""

from __future__ import annotations

import pytest

from headrace.engine.ring_sizes import RingSizes


def taken(sizes: RingSizes, num_slots: int) -> int:
    return sizes.num_bytes(num_slots, sizes.num_places(num_slots))


def test_without_experts_a_ring_is_slots_for_the_largest_part() -> None:
    sizes = RingSizes.of([(100, []), (300, [])])
    assert (sizes.num_places(2), taken(sizes, 2), taken(sizes, 3)) == (0, 600, 900)


@pytest.mark.parametrize("num_slots", [2, 3, 4])
def test_slots_and_places_take_no_more_than_so_many_whole_parts(num_slots: int) -> None:
    sizes = RingSizes.of([(300, []), (100, [70] * 8)])
    assert sizes.largest_bytes == 100 + 8 * 70
    assert taken(sizes, num_slots) <= num_slots * sizes.largest_bytes


def test_there_are_places_for_all_experts_of_as_many_layers_as_there_are_slots() -> None:
    assert RingSizes.of([(100, [64] * 8), (100, [70] * 8)]).num_places(2) == 16


def test_a_micro_batch_may_need_all_experts_of_a_layer() -> None:
    assert RingSizes.of([(500, []), (0, [70] * 8)]).num_places(2) == 8
