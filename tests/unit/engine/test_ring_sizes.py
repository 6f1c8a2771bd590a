"""What streaming takes is what it would take if layers were brought whole."""

from __future__ import annotations

import pytest

from headrace.engine.ring_sizes import RingSizes


def test_without_experts_a_ring_is_slots_for_the_largest_layer() -> None:
    sizes = RingSizes.of({0: 100, 1: 300}, {})
    assert (sizes.num_places(2), sizes.num_bytes(2), sizes.num_bytes(3)) == (0, 600, 900)


@pytest.mark.parametrize("num_slots", [2, 3, 4])
def test_slots_and_places_take_no_more_than_so_many_whole_layers(num_slots: int) -> None:
    sizes = RingSizes.of({0: 300, 1: 100}, {1: [70] * 8})
    assert sizes.largest_bytes == 100 + 8 * 70
    assert sizes.num_bytes(num_slots) <= num_slots * sizes.largest_bytes


def test_there_are_places_for_all_experts_of_as_many_layers_as_there_are_slots() -> None:
    assert RingSizes.of({0: 100, 1: 100}, {0: [64] * 8, 1: [70] * 8}).num_places(2) == 16


def test_a_micro_batch_may_need_all_experts_of_a_layer() -> None:
    sizes = RingSizes.of({0: 500, 1: 0}, {1: [70] * 8})
    assert sizes.num_places(2) == 8
