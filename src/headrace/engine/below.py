"""Takes room for KV on the disk."""

from __future__ import annotations

from headrace.engine.tiers import Tiers
from headrace.storage.scratch_file import ScratchFile


def open_scratch_file(tiers: Tiers, what: str, num_bytes: int, *, is_aligned: bool) -> ScratchFile:
    """Takes room on the disk tier, behind its throttle.

    Raises:
        DiskSpaceError: the disk has too little room.
    """
    return ScratchFile(
        tiers.disk,
        what=what,
        num_bytes=num_bytes,
        is_aligned=is_aligned,
        throttle=tiers.throttle,
        trace=tiers.trace,
    )
