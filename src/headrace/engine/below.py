"""Takes room for KV in the tiers below the device."""

from __future__ import annotations

from headrace.engine.tiers import Tiers
from headrace.kv_cache.stores import FileBehindLink, HostStore, KVStore
from headrace.storage.scratch_file import ScratchFile


def open_host_store(tiers: Tiers, what: str, num_bytes: int) -> KVStore:
    """Takes host memory behind the device's link.

    Raises:
        BudgetError: the host has too little room.
    """
    assert tiers.link is not None, "without a device the host is no tier of its own"
    tiers.host_budget.charge(what, num_bytes)
    return HostStore(tiers.link, num_bytes)


def open_disk_store(tiers: Tiers, what: str, num_bytes: int, *, is_aligned: bool) -> KVStore:
    """Takes room on the disk; what comes up from there to a device passes its link, too.

    Raises:
        DiskSpaceError: the disk has too little room.
    """
    file = ScratchFile(
        tiers.disk,
        what=what,
        num_bytes=num_bytes,
        is_aligned=is_aligned,
        throttle=tiers.throttle,
        trace=tiers.trace,
    )
    return file if tiers.link is None else FileBehindLink(file)
