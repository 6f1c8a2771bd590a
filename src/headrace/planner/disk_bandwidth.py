"""How fast a disk writes, and reads by several threads in blocks of several sizes. Free of torch."""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import DiskSpaceError
from headrace.planner.calibration_record import DiskRead
from headrace.units import GIB, MIB, format_bytes

NUM_THREADS = (1, 2, 4)
BLOCK_BYTES = (1 * MIB, 4 * MIB, 8 * MIB, 16 * MIB)
_FILE_BYTES = 1 * GIB
_LEAST_FILE_BYTES = 64 * MIB
_FREE_SHARE = 1 / 2
"""Of what is free on the disk; the file is not larger than this."""
_WRITE_BYTES = 16 * MIB
_WRITE_SECONDS, _READ_SECONDS = 6.0, 0.5
"""What writing the file, and one reading of it, take at most; on a slow disk the file is then smaller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskBandwidth:
    """See `measure_disk`."""

    direct_reads: bool
    reads: tuple[DiskRead, ...]
    write_bytes_per_second: float


def measure_disk(
    folder: Path,
    *,
    file_bytes: int = _FILE_BYTES,
    note: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> DiskBandwidth:
    """Writes a file without a name in `folder`, and reads it by 1, 2 and 4 threads in blocks of 1 to 16 MiB.

    The file has lost its name before the first byte is written, so that nothing of it outlives this process, however it
    ends. It is read past the page cache; where the file system refuses that, it is dropped from the cache before.

    Raises:
        DiskSpaceError: the folder cannot be written, or its disk is full.
    """
    file_bytes = min(file_bytes, int(_FREE_SHARE * shutil.disk_usage(folder).free)) // _WRITE_BYTES * _WRITE_BYTES
    if file_bytes < _LEAST_FILE_BYTES:
        raise DiskSpaceError(
            f"{folder}: measuring the disk needs {format_bytes(_LEAST_FILE_BYTES / _FREE_SHARE)} of free space there; "
            "make room, or name another folder of the disk"
        )
    try:
        with _nameless_file(folder) as descriptor:
            direct = _turn_direct(descriptor)
            note(f"writing up to {format_bytes(file_bytes)} to {folder}, deleted at the end")
            start = clock()
            num_bytes = _write(descriptor, file_bytes, clock)
            write_rate = num_bytes / max(clock() - start, 1e-9)
            reads = []
            for num_threads, block_bytes in itertools.product(NUM_THREADS, BLOCK_BYTES):
                note(f"reading it with {num_threads} threads, {format_bytes(block_bytes)} at a time")
                rate = _read_rate(descriptor, num_bytes, num_threads, block_bytes, clock)
                reads.append(DiskRead(num_threads=num_threads, block_bytes=block_bytes, bytes_per_second=rate))
    except OSError as error:
        raise DiskSpaceError(
            f"{folder}: cannot measure the disk: {error.strerror}; name another folder of the disk that can be written"
        ) from error
    return DiskBandwidth(direct_reads=direct, reads=tuple(reads), write_bytes_per_second=write_rate)


@contextmanager
def _nameless_file(folder: Path) -> Iterator[int]:
    descriptor, name = tempfile.mkstemp(dir=folder, prefix="headrace-calibration-")
    try:
        os.unlink(name)
        yield descriptor
    finally:
        os.close(descriptor)


def _turn_direct(descriptor: int) -> bool:
    """Makes the file's reads and writes pass the page cache; returns whether the file system does that."""
    if not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _write(descriptor: int, num_bytes: int, clock: Callable[[], float]) -> int:
    """Writes until the file is large enough or time is up, and waits until it lies on the disk; returns its size."""
    start, done = clock(), 0
    with mmap.mmap(-1, _WRITE_BYTES) as buffer:  # begins at a page border, as direct writes want
        buffer.write(os.urandom(_WRITE_BYTES))  # some disks compress
        while done < num_bytes and (done < _LEAST_FILE_BYTES or clock() - start < _WRITE_SECONDS):
            if os.pwrite(descriptor, buffer, done) < _WRITE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += _WRITE_BYTES
    os.fsync(descriptor)
    return done


def _read_rate(
    descriptor: int, num_bytes: int, num_threads: int, block_bytes: int, clock: Callable[[], float]
) -> float:
    """Reads from the file's start until its end or until time is up; returns bytes per second."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    offsets = iter(range(0, num_bytes, block_bytes))  # `next` of it is one step of the interpreter, safe among threads
    start = clock()

    def read() -> int:
        done = 0
        with mmap.mmap(-1, block_bytes) as buffer:
            while clock() - start < _READ_SECONDS and (offset := next(offsets, None)) is not None:
                done += os.preadv(descriptor, [buffer], offset)
        return done

    with ThreadPoolExecutor(num_threads, thread_name_prefix="headrace-calibration") as pool:
        num_read = sum(pool.map(lambda _: read(), range(num_threads)))
    return max(1, num_read) / max(clock() - start, 1e-9)
