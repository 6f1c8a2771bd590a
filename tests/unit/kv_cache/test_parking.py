from __future__ import annotations

from headrace.kv_cache.parking import BlockMove, ParkingLot


def test_every_block_gets_a_place_of_its_group() -> None:
    lot = ParkingLot([3, 1])
    moves = lot.park(7, 20, [{2: 40, 3: 41}, {0: 5}])
    assert {(move.group, move.block) for move in moves} == {(0, 40), (0, 41), (1, 5)}
    parked = lot.find(7)
    assert parked is not None and parked.num_tokens == 20
    assert moves[0] == BlockMove(group=0, block=40, place=parked.places[0][2])
    assert lot.check_integrity() == []


def test_there_is_room_only_where_every_group_has_it() -> None:
    lot = ParkingLot([3, 1])
    assert lot.has_room([{0: 1, 1: 2, 2: 3}, {0: 1}])
    assert not lot.has_room([{0: 1}, {0: 1, 1: 2}])
    lot.park(0, 1, [{0: 1}, {0: 1}])
    assert not lot.has_room([{}, {0: 1}])


def test_released_places_are_taken_again() -> None:
    lot = ParkingLot([1])
    lot.park(0, 1, [{0: 1}])
    lot.release(0)
    lot.release(0)
    assert lot.find(0) is None
    assert lot.park(1, 1, [{0: 9}])[0].place == 0
    assert lot.check_integrity() == []


def test_a_place_with_two_owners_does_not_add_up() -> None:
    lot = ParkingLot([2])
    lot.park(0, 1, [{0: 1}])
    lot._free[0].append(0)
    assert lot.check_integrity()
