"""Reads file ranges into memory by a few threads, past the page cache where the file system allows it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError
from headrace.storage.aligned import PAGE_BYTES, AlignedBuffer, pages_above, pages_below
from headrace.storage.file_state import FileState
from headrace.storage.read_queue import ReadQueue
from headrace.storage.throttle import Throttle
from headrace.storage.transfer import Transfer
from headrace.trace import NoTrace, Trace
from headrace.units import MIB

NUM_THREADS = 2
BLOCK_BYTES = 8 * MIB
"""One read; large enough for every disk to be at its best, small enough for threads to share a layer evenly."""
STAGING_BYTES = NUM_THREADS * (BLOCK_BYTES + 2 * PAGE_BYTES)
"""Memory that the threads take for themselves, for ranges that are not direct."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRange:
    """`num_bytes` of `file` at `offset` that belong at `target` in a buffer.

    Attributes:
        direct: the buffer's page at `target` is this range's own from border to border, and `target` lies as far behind
            a border as `offset` does: whole pages may be read straight into it.
    """

    file: Path
    offset: int
    num_bytes: int
    target: int
    direct: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """A block of a transfer: what one thread reads."""

    range: FileRange
    file: _OpenFile
    buffer: memoryview
    transfer: Transfer

    @property
    def offset(self) -> int:
        return self.range.offset

    @property
    def num_bytes(self) -> int:
        return self.range.num_bytes

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes

    def memory(self, first: int, past: int) -> memoryview:
        """Where the file's bytes from `first` to `past` belong."""
        start = self.range.target - self.offset
        return self.buffer[start + first : start + past]


class DiskReader:
    """A few threads that read in the order of the calls, and neighbours together. A context manager; `close` ends them.

    A file is opened once and must not change from then on. Files that are deleted while in use stay readable.
    """

    def __init__(
        self,
        *,
        num_threads: int = NUM_THREADS,
        block_bytes: int = BLOCK_BYTES,
        throttle: Throttle | None = None,
        trace: Trace | None = None,
    ) -> None:
        self._block_bytes = block_bytes
        self._throttle = throttle
        self._trace = trace or NoTrace()
        self._files: dict[Path, _OpenFile] = {}
        self._busy = _BusyTime()
        self._parts: ReadQueue[_Part] = ReadQueue(block_bytes)
        # Taken here: memory that is not there is the caller's error, where a thread without it would leave him waiting.
        self._staging = [AlignedBuffer(block_bytes + 2 * PAGE_BYTES) for _ in range(num_threads)]
        self._threads = [
            threading.Thread(target=self._work, args=(staging,), name=f"headrace-disk-{number}", daemon=True)
            for number, staging in enumerate(self._staging)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def bytes_per_second(self) -> float:
        """The rate of all that was read so far, over the time in which anything was being read."""
        return self._busy.num_bytes / max(self._busy.seconds, 1e-9)

    @property
    def throttle(self) -> Throttle | None:
        """What all reads pass, where they are limited."""
        return self._throttle

    @property
    def num_bytes(self) -> int:
        """All that was read so far."""
        return self._busy.num_bytes

    @property
    def busy_seconds(self) -> float:
        """The time so far in which anything was being read."""
        return self._busy.seconds

    def open(self, file: Path) -> None:
        """Opens a file before it is needed, so that a missing one is found now.

        Raises:
            CheckpointNotFoundError: it cannot be opened.
        """
        if file not in self._files:
            self._files[file] = _OpenFile(file)

    def read(self, what: str, ranges: Sequence[FileRange], buffer: memoryview) -> Transfer:
        """Begins to read all `ranges` into `buffer`, whose first byte lies at a page border.

        The transfer fails with CorruptCheckpointError where a file ends too early, has changed, or cannot be read.

        Raises:
            CheckpointNotFoundError: a file cannot be opened; nothing was begun.
        """
        for range_ in ranges:
            self.open(range_.file)
        parts = [part for range_ in ranges for part in self._cut(range_)]
        transfer = Transfer(what, len(parts))
        for part in parts:
            self._parts.put(_Part(part, self._files[part.file], buffer, transfer))
        return transfer

    def close(self) -> None:
        """Reads what was begun to its end, then ends the threads and closes the files."""
        self._parts.close()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        while self._staging:
            self._staging.pop().close()
        while self._files:
            self._files.popitem()[1].close()

    def __enter__(self) -> DiskReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut(self, whole: FileRange) -> list[FileRange]:
        """Cuts a range into blocks, at page borders of the file."""
        end = whole.offset + whole.num_bytes
        cuts = [whole.offset, *range(pages_below(whole.offset) + self._block_bytes, end, self._block_bytes), end]
        return [
            FileRange(
                file=whole.file,
                offset=first,
                num_bytes=last - first,
                target=whole.target + first - whole.offset,
                direct=whole.direct,
            )
            for first, last in pairwise(cuts)
            if last > first
        ]

    def _work(self, staging: AlignedBuffer) -> None:
        # The thread alone uses its staging memory, and a part's bytes of the buffer are written by nobody else.
        own = threading.current_thread().name
        while parts := self._parts.take():
            error: Exception | None = None
            try:
                num_bytes = sum(part.num_bytes for part in parts)
                what = parts[0].transfer.what
                with self._busy.reading(num_bytes), self._trace.span(own, what, num_bytes=num_bytes):
                    self._read_parts(parts, staging)
            except Exception as raised:  # whoever waits for the transfers gets it
                error = raised
            for part in parts:
                part.transfer.finish_part(error)
            del part, parts  # or the buffers would be held until the next ones come

    def _read_parts(self, parts: Sequence[_Part], staging: AlignedBuffer) -> None:
        """Reads neighbours in a file at once."""
        file, start, end = parts[0].file, parts[0].offset, parts[-1].end
        first, past = pages_below(start), pages_above(end)
        if self._throttle is not None:
            self._throttle.pass_bytes(past - first)
        if all(part.range.direct for part in parts):
            file.read(first, [part.memory(*pages) for part, pages in _pages_of(parts)], end - first)
            _copy_shared_pages(parts)
            return
        file.read(first, [staging.bytes[: past - first]], end - first)
        for part in parts:
            _copy(staging.bytes[part.offset - first :], part.memory(part.offset, part.end))


def _pages_of(parts: Sequence[_Part]) -> Iterator[tuple[_Part, tuple[int, int]]]:
    """Yields, for neighbours in a file, which pages are read to where each part belongs: a shared one to the first."""
    first = pages_below(parts[0].offset)
    for part in parts:
        past = pages_above(part.end)
        yield part, (first, past)
        first = past


def _copy_shared_pages(parts: Sequence[_Part]) -> None:
    """Copies what lies in the last page of neighbours in front, which was read to where those belong."""
    holder = parts[0]
    for part in parts[1:]:
        past = min(part.end, pages_above(part.offset))
        _copy(holder.memory(part.offset, past), part.memory(part.offset, past))
        if part.end > past:
            holder = part


def _from(done: int, buffers: Sequence[memoryview]) -> list[memoryview]:
    """Returns what is left of buffers when so many bytes of them are filled."""
    left = []
    for buffer in buffers:
        if done < len(buffer):
            left.append(buffer[done:])
        done = max(0, done - len(buffer))
    return left


class _BusyTime:
    """Adds up the time in which at least one thread reads."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.seconds = 0.0
        self._num_reading = 0
        self._since = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def reading(self, num_bytes: int) -> Iterator[None]:
        with self._lock:
            self._since = self._since if self._num_reading else time.perf_counter()
            self._num_reading += 1
        try:
            yield
        finally:
            with self._lock:
                self.num_bytes += num_bytes
                self._num_reading -= 1
                now = time.perf_counter()
                self.seconds += now - self._since
                self._since = now


class _OpenFile:
    """A file's descriptor, and what the file was like when it was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            try:
                self._descriptor = os.open(path, flags | getattr(os, "O_DIRECT", 0))
            except OSError as error:
                if error.errno != errno.EINVAL:  # what file systems without direct reads say
                    raise
                self._descriptor = os.open(path, flags)
        except OSError as error:
            raise CheckpointNotFoundError(
                f"cannot open {path}: {error.strerror}; download or copy the file again"
            ) from error
        self._state = FileState.of(self._descriptor)

    def read(self, offset: int, buffers: Sequence[memoryview], num_wanted: int) -> None:
        """Fills `num_wanted` bytes or more; the last of `buffers` ends on a page border where the file may end."""
        done = 0
        while done < num_wanted:
            try:
                count = os.preadv(self._descriptor, _from(done, buffers), offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and self._is_direct:
                    self._read_buffered_from_now_on()
                    continue
                raise CorruptCheckpointError(
                    f"{self._path}: cannot read {num_wanted - done} bytes at {offset + done}: {error.strerror}; "
                    "check the disk, then download or copy the file again"
                ) from error
            if count == 0:
                break
            done += count
        if FileState.of(self._descriptor) != self._state or done < num_wanted:
            raise CorruptCheckpointError(
                f"{self._path}: changed while it was in use; start again, and leave the file alone until the end"
            )

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def _is_direct(self) -> bool:
        direct = getattr(os, "O_DIRECT", 0)
        return bool(direct) and bool(_status_flags(self._descriptor) & direct)

    def _read_buffered_from_now_on(self) -> None:
        """For disks whose direct reads want larger pages than ours."""
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, _status_flags(self._descriptor) & ~os.O_DIRECT)


def _status_flags(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def _copy(source: memoryview, target: memoryview) -> None:
    """`memcpy` without the interpreter's lock, which assigning to a memoryview would hold."""
    if not len(target):
        return
    first = (ctypes.c_char * len(target)).from_buffer(target)
    ctypes.memmove(first, (ctypes.c_char * len(source)).from_buffer(source), len(target))
