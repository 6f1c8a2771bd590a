"""A bound on a process's memory and file cache together, so that no system runs from cached files beyond its budget.

A cgroup (version 2) is such a bound, where making one is permitted. `evict` stands in for it elsewhere: a thread looks
at the memory of the process and at what the file cache holds of the model, and empties the latter whenever both
together are beyond the bound. Unlike a cgroup it takes a little computing, and ends no process that is too large.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.processes import Figures
from benchmarks.weight_files import cached_bytes, drop_from_cache

CapKind = Literal["cgroup", "evict", "none"]

_MOUNTS, _OWN = Path("/proc/self/mounts"), Path("/proc/self/cgroup")
_LOOK_SECONDS = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryCap:
    """A bound that processes can be run under.

    Attributes:
        join: called in a new process before it starts.
        beside: given its number, a context in which it runs.
        reason: why there is no bound; empty where there is one.
        seen: the most that was seen, where somebody looks.
    """

    kind: CapKind
    limit_bytes: int
    join: Callable[[], None] | None = None
    beside: Callable[[int], AbstractContextManager[None]] = nullcontext
    reason: str = ""
    seen: list[int] = field(default_factory=list)

    def figures(self) -> Figures:
        if self.kind == "none":
            return {"kind": "none", "reason": self.reason}
        seen = {"most_seen_bytes": max(self.seen)} if self.seen else {}
        return {"kind": self.kind, "limit_bytes": self.limit_bytes, **seen}


@contextmanager
def memory_cap(
    kind: CapKind, limit_bytes: int, files: Callable[[], Sequence[Path]], *, mounts: Path = _MOUNTS, own: Path = _OWN
) -> Iterator[MemoryCap]:
    """Makes a bound of memory and file cache, and removes it at the end.

    Args:
        kind: `cgroup` comes out as no bound, with the reason, where no group can be made.
        files: whose cached pages count, for `evict`.
    """
    if kind == "evict":
        seen: list[int] = []
        yield MemoryCap(
            kind=kind, limit_bytes=limit_bytes, beside=lambda pid: _evicting(pid, limit_bytes, files(), seen), seen=seen
        )
        return
    found = "it was asked for none" if kind == "none" else _own_group(mounts, own)
    made = found if isinstance(found, str) else _make(found, limit_bytes)
    if isinstance(made, str):
        yield MemoryCap(kind="none", limit_bytes=limit_bytes, reason=made)
        return
    try:
        yield MemoryCap(kind="cgroup", limit_bytes=limit_bytes, join=lambda: _join(made))
    finally:
        made.rmdir()


@contextmanager
def _evicting(pid: int, limit_bytes: int, files: Sequence[Path], seen: list[int]) -> Iterator[None]:
    """Keeps the memory of process `pid` and the cached part of `files` below the limit, while the context lasts."""
    ended = threading.Event()

    def keep_down() -> None:
        while not ended.wait(_LOOK_SECONDS):
            used = _anonymous_bytes(pid) + sum(map(cached_bytes, files))
            seen.append(max(used, seen.pop() if seen else 0))
            if used > limit_bytes:
                for file in files:
                    drop_from_cache(file)

    thread = threading.Thread(target=keep_down, name="file-cache", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _own_group(mounts: Path, own: Path) -> Path | str:
    """Returns this process's group, or why there is none that could bound memory."""
    try:
        mounted = [line.split() for line in mounts.read_text().splitlines()]
        lines = own.read_text().splitlines()
    except OSError:
        return "this system has no cgroups"
    root = next((Path(fields[1]) for fields in mounted if fields[2] == "cgroup2"), None)
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if root is None or path is None:
        return "this system has no cgroups of version 2"
    group = root / path.lstrip("/")
    try:
        controllers = (root / "cgroup.controllers").read_text().split()
    except OSError as error:
        return f"{root} cannot be read: {error.strerror}"
    if "memory" not in controllers:
        return "the cgroups of version 2 on this machine do not control memory"
    return group


def _make(own: Path, limit_bytes: int) -> Path | str:
    """Makes the group below the own one or beside it, wherever children may bound memory already; changes no other."""
    why = ""
    for parent in (own, own.parent):
        group = parent / f"headrace-benchmark-{os.getpid()}"
        try:
            if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                why = f"{parent} does not let its children bound memory"
                continue
            group.mkdir()
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
            continue
        try:
            (group / "memory.max").write_text(str(limit_bytes))
            swap = group / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
        except OSError as error:
            group.rmdir()
            why = f"{error.filename}: {error.strerror}"
            continue
        return group
    return f"not permitted: {why}"
