"""Where the blocks of sequences lie that had to leave: places in the tier below, and who has which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockMove:
    """Block `block` of a group goes down to place `place`, or comes up from there, whole and in every layer."""

    group: int
    block: int
    place: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Parked:
    """A sequence whose KV is below.

    Attributes:
        num_tokens: whose KV that is.
        places: for each group the place of each block, by the block's index in the sequence's table; 0 is the one of a
            state.
    """

    num_tokens: int
    places: tuple[Mapping[int, int], ...]


class ParkingLot:
    """Places 0 .. num_places - 1 of each group below. A place is free, or has one block of one sequence."""

    def __init__(self, num_places: Sequence[int]) -> None:
        """Begins empty; without places nothing is ever parked."""
        self._num_places = tuple(num_places)
        self._free = [list(range(number - 1, -1, -1)) for number in num_places]
        self._parked: dict[int, Parked] = {}

    def has_room(self, blocks: Sequence[Mapping[int, int]]) -> bool:
        """Whether so many blocks of each group find a place."""
        return all(len(needed) <= len(free) for needed, free in zip(blocks, self._free, strict=True))

    def park(self, sequence_id: int, num_tokens: int, blocks: Sequence[Mapping[int, int]]) -> tuple[BlockMove, ...]:
        """Takes a place for every block of a sequence, in room that is there, and returns what goes where.

        Args:
            num_tokens: whose KV the blocks hold.
            blocks: those of each group, by index.
        """
        assert sequence_id not in self._parked, f"sequence {sequence_id} is parked already"
        places = tuple({index: free.pop() for index in needed} for needed, free in zip(blocks, self._free, strict=True))
        self._parked[sequence_id] = Parked(num_tokens=num_tokens, places=places)
        return tuple(
            BlockMove(group=group_id, block=block, place=places[group_id][index])
            for group_id, needed in enumerate(blocks)
            for index, block in needed.items()
        )

    def find(self, sequence_id: int) -> Parked | None:
        """Returns what is parked of a sequence, if anything is."""
        return self._parked.get(sequence_id)

    def release(self, sequence_id: int) -> None:
        """Frees the places of a sequence; does nothing to one that has none."""
        parked = self._parked.pop(sequence_id, None)
        if parked is not None:
            for free, places in zip(self._free, parked.places, strict=True):
                free.extend(places.values())

    def check_integrity(self) -> list[str]:
        """Returns what does not add up."""
        faults = []
        for group_id, free in enumerate(self._free):
            owners = Counter(free)
            for parked in self._parked.values():
                owners.update(parked.places[group_id].values())
            if sorted(owners.elements()) != list(range(self._num_places[group_id])):
                faults.append(f"group {group_id}: {sorted(owners.elements())} are not its places below, each once")
        return faults
