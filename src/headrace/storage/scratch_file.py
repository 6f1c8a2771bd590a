"""A file of our own below memory: room is taken at once, threads read and write it, and nothing of it is ever left."""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from headrace.errors import DiskSpaceError
from headrace.storage.folders import DiskTier
from headrace.storage.throttle import Throttle
from headrace.storage.transfer import Transfer
from headrace.trace import NoTrace, Trace
from headrace.units import format_bytes

NUM_THREADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Consecutive bytes of the file, and the parts of memory that they fill or come from, in order."""

    offset: int
    views: Sequence[memoryview]


@dataclass(frozen=True, slots=True)
class _Work:
    move: Callable[[int, Sequence[memoryview], int], int]
    piece: Piece
    transfer: Transfer
    after: Transfer | None


class ScratchFile:
    """Has no name from the start, so that even a killed process leaves nothing. A context manager; `close` frees it.

    Transfers run in no certain order: whoever reads what is being written waits for the writing first.
    """

    def __init__(
        self,
        disk: DiskTier,
        *,
        what: str,
        num_bytes: int,
        is_aligned: bool,
        throttle: Throttle | None = None,
        trace: Trace | None = None,
    ) -> None:
        """Takes `num_bytes` on the disk.

        Args:
            what: for messages.
            is_aligned: all offsets, lengths and memory of pieces lie at page borders, so that the page cache can be
                passed by where the file system allows it.

        Raises:
            DiskSpaceError: there is too little room, or the folder cannot be written.
        """
        disk.require(what, num_bytes)
        self._what, self._folder = what, disk.folder
        self._throttle = throttle
        self._trace = trace or NoTrace()
        try:
            self._file = tempfile.TemporaryFile(dir=disk.folder, prefix="headrace-", buffering=0)  # noqa: SIM115
            try:
                os.posix_fallocate(self._file.fileno(), 0, max(1, num_bytes))
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise DiskSpaceError(
                f"{disk.folder}: cannot take {format_bytes(num_bytes)} for {what}: {error.strerror}; make room there, "
                "or name another disk's folder with --disk FOLDER"
            ) from error
        if is_aligned:
            self._pass_by_the_page_cache()
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"headrace-scratch-{number}", daemon=True)
            for number in range(NUM_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def read(self, what: str, pieces: Sequence[Piece]) -> Transfer:
        """Begins to fill the memory of all pieces."""
        return self._begin(os.preadv, what, pieces, None)

    def write(self, what: str, pieces: Sequence[Piece], after: Transfer | None = None) -> Transfer:
        """Begins to write the memory of all pieces, once `after` has filled it; from then on it must not change."""
        return self._begin(os.pwritev, what, pieces, after)

    def close(self) -> None:
        """Ends what was begun, the threads and the file; a second call does nothing."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._file.close()

    def __enter__(self) -> ScratchFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(
        self,
        move: Callable[[int, Sequence[memoryview], int], int],
        what: str,
        pieces: Sequence[Piece],
        after: Transfer | None,
    ) -> Transfer:
        transfer = Transfer(what, len(pieces))
        for piece in pieces:
            self._queue.put(_Work(move, piece, transfer, after))
        return transfer

    def _work(self) -> None:
        # Pieces of one transfer touch different bytes; transfers that touch the same are never under way together.
        own = threading.current_thread().name
        while (work := self._queue.get()) is not None:
            error: Exception | None = None
            try:
                if work.after is not None:
                    work.after.wait()
                num_bytes = sum(len(view) for view in work.piece.views)
                with self._trace.span(own, work.transfer.what, num_bytes=num_bytes):
                    self._move(work, num_bytes)
            except OSError as raised:
                error = DiskSpaceError(
                    f"{work.transfer.what}: the file for {self._what} in {self._folder} failed: {raised.strerror}; "
                    "check that disk, or name another one's folder with --disk FOLDER"
                )
                error.__cause__ = raised
            except Exception as raised:  # whoever waits for the transfer gets it
                error = raised
            work.transfer.finish_part(error)
            del work  # or the memory would be held until the next one comes

    def _move(self, work: _Work, num_bytes: int) -> None:
        views, offset = list(work.piece.views), work.piece.offset
        if self._throttle is not None:
            self._throttle.pass_bytes(num_bytes)
        while views:
            try:
                count = work.move(self._file.fileno(), views, offset)
            except OSError as error:
                if error.errno == errno.EINVAL and self._is_direct:
                    self._set_flags(self._flags & ~os.O_DIRECT)  # a disk whose pages are larger than ours
                    continue
                raise
            if not count:
                raise OSError(errno.EIO, "it ends too early")
            offset += count
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]

    def _pass_by_the_page_cache(self) -> None:
        with suppress(OSError):  # file systems without direct access say no
            self._set_flags(self._flags | getattr(os, "O_DIRECT", 0))

    @property
    def _is_direct(self) -> bool:
        return bool(self._flags & getattr(os, "O_DIRECT", 0))

    @property
    def _flags(self) -> int:
        return fcntl.fcntl(self._file.fileno(), fcntl.F_GETFL)

    def _set_flags(self, flags: int) -> None:
        fcntl.fcntl(self._file.fileno(), fcntl.F_SETFL, flags)
