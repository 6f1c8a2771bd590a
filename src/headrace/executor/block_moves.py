"""Moves the blocks of rows that lose them to the tier below, and up again when the rows return."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from headrace.kv_cache.block_bytes import BlockBytes
from headrace.kv_cache.parking import BlockMove
from headrace.scheduler.sweep import Sweep
from headrace.storage.aligned import pages_above
from headrace.storage.scratch_file import Piece, ScratchFile
from headrace.storage.transfer import Transfer


class BlockMoveError(Exception):
    """KV could not be moved. Nothing was computed, and what was to come up has not; the sweep is to be abandoned."""


class BlockMoves(Protocol):
    """Makes the moves that come before a sweep."""

    def make(self, sweep: Sweep) -> None:
        """Returns when the sweep's moves are made: those down, then those up.

        Raises:
            BlockMoveError: a tier below failed.
        """

    def close(self) -> None:
        """Gives the room below back; a second call does nothing."""


class NoBlockMoves:
    """There is no tier below: rows that lose their blocks are computed again."""

    def make(self, sweep: Sweep) -> None:
        assert not sweep.moves_down and not sweep.moves_up, f"sweep {sweep.sweep_id} moves blocks, and nothing can"

    def close(self) -> None:
        pass


class BlockMover:
    """Place n of a group is its record n below. All moves of one direction are under way together."""

    def __init__(self, blocks: BlockBytes, num_places: Sequence[int], file: ScratchFile) -> None:
        """Takes over `file`, which has room for `room_below(blocks, num_places)` bytes."""
        self._offsets = _offsets(blocks, num_places)
        self._blocks = blocks
        self._file = file
        self._under_way: Transfer | None = None

    def make(self, sweep: Sweep) -> None:
        if self._under_way is not None:  # left by a sweep that was interrupted
            self._under_way.settle()
        try:
            if sweep.moves_down:
                self._wait_for(self._file.write("KV of preempted rows, down", self._pieces(sweep.moves_down)))
            if sweep.moves_up:
                self._wait_for(self._file.read("KV of preempted rows, up", self._pieces(sweep.moves_up)))
        except Exception as error:
            self._clear(sweep.moves_up)
            raise BlockMoveError(str(error)) from error

    def close(self) -> None:
        self._file.close()

    def _wait_for(self, transfer: Transfer) -> None:
        self._under_way = transfer
        transfer.wait()

    def _pieces(self, moves: Sequence[BlockMove]) -> list[Piece]:
        return [
            Piece(
                offset=self._offsets[move.group] + move.place * self._blocks.record_bytes(move.group),
                views=self._blocks.views(move.group, move.block),
            )
            for move in moves
        ]

    def _clear(self, moves: Sequence[BlockMove]) -> None:
        """Leaves zeros: the unused end of a block is read by whoever has it next, and must not be NaN."""
        for move in moves:
            for view in self._blocks.views(move.group, move.block):
                view[:] = bytes(len(view))


def room_below(blocks: BlockBytes, num_places: Sequence[int]) -> int:
    """Returns the bytes that so many places of each group take."""
    return _offsets(blocks, num_places)[-1]


def _offsets(blocks: BlockBytes, num_places: Sequence[int]) -> list[int]:
    """Where each group's records begin, and where the last ones end."""
    sizes = (pages_above(count * blocks.record_bytes(group)) for group, count in enumerate(num_places))
    return list(accumulate(sizes, initial=0))
