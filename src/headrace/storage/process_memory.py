"""What the operating system says about memory: of this process, and of the machine or container around it."""

from __future__ import annotations

import ctypes
import mmap
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from headrace.units import MIB

_CGROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_TASKS, _MAPS = Path("/proc/self/task"), Path("/proc/self/maps")
_peak_before_reset = 0
"""What the peak counter showed before it was last reset; nobody else remembers it."""


def resident_bytes() -> int:
    """Returns the resident memory of this process and its children."""
    total = _own_resident_bytes()
    for child in _children():
        try:
            total += child.memory_info().rss
        except psutil.Error:  # it ended between the two calls
            continue
    return total


def peak_resident_bytes() -> int:
    """Returns the highest resident memory of this process so far."""
    return max(_peak_before_reset, _peak_counter_bytes())


def available_bytes() -> int:
    """Returns what this process could still take: of the machine, and of its container where that is less."""
    available: int = psutil.virtual_memory().available
    return min([available, *(max(0, limit - usage) for limit, usage in _container_limits())])


def container_limit_bytes() -> int | None:
    """Returns what the container around this process may use of the machine's memory; None where that is all of it."""
    limit = min((limit for limit, _ in _container_limits()), default=None)
    return None if limit is None or limit >= psutil.virtual_memory().total else limit


def _container_limits() -> Iterator[tuple[int, int]]:
    """The limits that are set, and what is used of each."""
    for limit_file, usage_file in _CGROUP_LIMITS:
        try:
            limit, usage = limit_file.read_text().strip(), usage_file.read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            yield int(limit), int(usage)


def peak_growth_bytes(run: Callable[[], object]) -> int:
    """Runs `run` and returns by how much resident memory rose above its value before, at the highest.

    Linux counts that itself, once its peak counter is reset; elsewhere a thread looks at every millisecond. Pages of
    code that the system took meanwhile, as some do with what lies idle, count as if they had stayed: they come back.
    """
    global _peak_before_reset
    release_freed_memory()
    _peak_before_reset = peak_resident_bytes()
    try:
        _CLEAR_REFS.write_text("5")  # resets VmHWM, proc(5)
    except OSError:
        return _watched_growth_bytes(run)
    before, code_before = _own_resident_bytes(), _status_bytes("RssFile") or 0
    run()
    taken = max(0, code_before - (_status_bytes("RssFile") or 0))
    return max(0, _peak_counter_bytes() + taken - before)


def _watched_growth_bytes(run: Callable[[], object]) -> int:
    before = highest = _own_resident_bytes()
    ended = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.001):
            highest = max(highest, _own_resident_bytes())

    watcher = threading.Thread(target=watch, name="headrace-memory", daemon=True)
    watcher.start()
    try:
        run()
        after = _own_resident_bytes()  # what stays counts, however short the run was
    finally:
        ended.set()
        watcher.join()  # from here on nobody else writes `highest`
    return max(highest, after) - before


def keep_freed_memory() -> None:
    """Makes the C library keep freed buffers for the next ones, instead of handing each back to the system.

    Activations are allocated and freed in every layer; fresh pages from the system cost a fault and a clearing each,
    which took half the time of an attention call. What is kept never exceeds the peak, which is reserved anyway.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, 32 * MIB)  # glibc's maximum
            set_option(_M_TRIM_THRESHOLD, 1024 * MIB)


def release_freed_memory() -> None:
    """Gives memory that was freed, but kept by the C library for later, back to the system."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def release_code_pages() -> None:
    """Lets go of the pages of libraries' code, which count as this process's memory.

    Those that are run again come back from the system's file cache. How many others came with them, and when, is the
    system's affair: of torch's it was 60 MiB more where the file cache had been filled by writing the files.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    for line in _MAPS.read_text().splitlines():
        fields = line.split(maxsplit=5)
        # Only what is run and cannot be written: a page of it is the same in the file.
        if fields[1] == "r-xp" and len(fields) == 6 and fields[5].startswith("/"):
            start, end = (int(border, 16) for border in fields[0].split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _own_resident_bytes() -> int:
    resident = _status_bytes("VmRSS")
    return psutil.Process().memory_info().rss if resident is None else resident


def _peak_counter_bytes() -> int:
    """What the system counts as this process's peak; on Linux since the last reset."""
    peak = _status_bytes("VmHWM")
    if peak is not None:
        return peak
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _children() -> list[psutil.Process]:
    """All descendants. Linux names the direct ones in /proc; where there are none, no other process is looked at."""
    files = list(_TASKS.glob("*/children"))
    try:
        if files and not any(file.read_text() for file in files):
            return []
    except OSError:  # a thread ended between the two calls
        pass
    return psutil.Process().children(recursive=True)


def _status_bytes(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
