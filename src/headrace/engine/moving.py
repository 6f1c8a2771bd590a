"""Where the KV of rows goes that lose their blocks, and whether it goes there or is computed again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from headrace.engine.below import open_scratch_file
from headrace.engine.tiers import Tiers
from headrace.errors import DiskSpaceError, HeadraceError
from headrace.executor.block_moves import BlockMover, BlockMoves, NoBlockMoves, room_below
from headrace.kv_cache.block_bytes import BlockBytes
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.manager import KVCacheManager
from headrace.planner.preemption import MoveRates, SweepSpeed, moving_is_faster
from headrace.scheduler.sweep import Sweep
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.scratch_file import Piece, ScratchFile
from headrace.units import MIB, format_bytes

_WHAT = "KV of preempted rows"
_DISK_SHARE = 1 / 4
"""Of what the disk has to spare."""
_PLACES_PER_BLOCK = 2
"""Rows that leave one after another while all grow evenly from s to l tokens have ln(l / s) times the blocks in all."""
_PIECE_BYTES = 2 * MIB
_MEASURED_BYTES = 8 * MIB

logger = logging.getLogger(__name__)


class KVMoving:
    """Keeps the KV of preempted rows on disk.

    Nothing is opened before the first row is preempted, so that an engine that has blocks for all its rows takes no
    room. Then a file is opened there, with two places for each block where there is the room, and its rates are
    measured. Where that fails, rows are computed again.
    """

    def __init__(self, *, cache: KVCacheManager, blocks: BlockBytes, tiers: Tiers, speed: SweepSpeed) -> None:
        """Takes nothing yet.

        Args:
            blocks: of the pools, with the KV of all layers.
            speed: of the engine whose rows these are.
        """
        self._cache = cache
        self._blocks = blocks
        self._tiers = tiers
        self._speed = speed
        self._mover: BlockMoves = NoBlockMoves()
        self._rates: MoveRates | None = None
        self._was_opened = False

    def is_faster(self, num_tokens: int) -> bool:
        """Whether moving the KV of so many tokens is reckoned faster than computing it again."""
        if not self._was_opened:
            self._was_opened = True
            try:
                self._open()
            except (HeadraceError, OSError) as error:
                logger.warning("%s; rows that lose their KV are computed again", error)
        return self._rates is not None and moving_is_faster(
            self._moved_bytes(num_tokens),
            self._rates,
            num_tokens=num_tokens,
            tokens_per_second=self._speed.tokens_per_second,
        )

    def make(self, sweep: Sweep) -> None:
        """Makes a sweep's moves, as `BlockMoves` says it."""
        self._mover.make(sweep)

    def close(self) -> None:
        """Gives the room below back; a second call does nothing."""
        self._mover.close()

    def _open(self) -> None:
        num_places = [_PLACES_PER_BLOCK * pool.num_blocks for pool in self._cache.pools]
        num_bytes, disk = room_below(self._blocks, num_places), self._tiers.disk
        share = min(1.0, _DISK_SHARE * disk.free_bytes / num_bytes)
        num_places = [int(share * count) for count in num_places]
        if not all(num_places):
            raise DiskSpaceError(
                f"{disk.folder}: too little room for the {_WHAT}, up to {format_bytes(num_bytes)}; make room there, or "
                "name another disk's folder with --disk FOLDER"
            )
        num_bytes = room_below(self._blocks, num_places)
        file = open_scratch_file(self._tiers, _WHAT, num_bytes, is_aligned=self._blocks.is_aligned)
        self._mover = BlockMover(self._blocks, num_places, file)
        self._rates = measure_file(file, min(num_bytes, _MEASURED_BYTES))
        self._cache.open_parking(num_places)

    def _moved_bytes(self, num_tokens: int) -> int:
        return sum(
            self._blocks.record_bytes(group.group_id) * _num_needed(group, num_tokens, self._cache.block_tokens)
            for group in self._cache.groups
        )


def _num_needed(group: KVGroup, num_tokens: int, block_tokens: int) -> int:
    """Blocks that a sequence of `num_tokens` tokens goes on from."""
    if group.kind == "state":
        return 1
    return -(-num_tokens // block_tokens) - group.first_needed_block(num_tokens, block_tokens)


def measure_file(file: ScratchFile, num_bytes: int) -> MoveRates:
    """Returns how fast the first `num_bytes` of a file are written and read; what is there is lost.

    Raises:
        DiskSpaceError: a disk failed.
    """
    with AlignedBuffer(num_bytes) as buffer:
        views = [buffer.bytes[start : start + _PIECE_BYTES] for start in range(0, num_bytes, _PIECE_BYTES)]
        pieces = [Piece(offset=index * _PIECE_BYTES, views=[view]) for index, view in enumerate(views)]
        down = _seconds(file, pieces, is_up=False)
        up = _seconds(file, pieces, is_up=True)
        return MoveRates(down=num_bytes / down, up=num_bytes / up)


def _seconds(file: ScratchFile, pieces: Sequence[Piece], *, is_up: bool) -> float:
    started = time.perf_counter()
    (file.read if is_up else file.write)("a measurement", pieces).wait()
    return max(time.perf_counter() - started, 1e-9)
