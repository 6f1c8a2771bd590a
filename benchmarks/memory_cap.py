"""A bound on a process's memory and file cache together, by a cgroup (version 2) where that is permitted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Figures

_MOUNTS, _OWN = Path("/proc/self/mounts"), Path("/proc/self/cgroup")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryCap:
    """A group to join, or the reason why there is none."""

    group: Path | None
    limit_bytes: int
    reason: str = ""

    def join(self) -> None:
        """Puts the calling process under the cap; called in a new process before it starts."""
        if self.group is not None:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def figures(self) -> Figures:
        if self.group is None:
            return {"kind": "none", "reason": self.reason}
        return {"kind": "cgroup v2", "memory_max_bytes": self.limit_bytes}


@contextmanager
def memory_cap(limit_bytes: int, *, mounts: Path = _MOUNTS, own: Path = _OWN) -> Iterator[MemoryCap]:
    """Makes a group of `limit_bytes` beside or below this process's own one, and removes it at the end."""
    found = _own_group(mounts, own)
    if isinstance(found, str):
        yield MemoryCap(group=None, limit_bytes=limit_bytes, reason=found)
        return
    made = _make(found, limit_bytes)
    if isinstance(made, str):
        yield MemoryCap(group=None, limit_bytes=limit_bytes, reason=made)
        return
    try:
        yield MemoryCap(group=made, limit_bytes=limit_bytes)
    finally:
        made.rmdir()


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
