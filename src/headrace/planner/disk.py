"""The disk under a folder: its room, and whether it reads past the page cache."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

_PROBED_FILES = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """See `describe_disk`.

    Attributes:
        device_id: the system's number for the disk (`st_dev`).
        direct_reads: whether O_DIRECT is accepted; None where nothing there could be opened to try.
    """

    folder: str
    device_id: int
    total_bytes: int
    free_bytes: int
    direct_reads: bool | None


def describe_disk(folder: Path) -> Disk:
    """Looks at the disk that `folder` is on; where it does not exist yet, at that of the nearest folder above it."""
    there = existing(folder)
    usage = shutil.disk_usage(there)
    return Disk(
        folder=str(folder),
        device_id=device_id(there),
        total_bytes=usage.total,
        free_bytes=usage.free,
        direct_reads=_reads_directly(there),
    )


def device_id(path: Path) -> int:
    """Returns the system's number of the disk that a file or folder, links followed, lies on."""
    return path.stat().st_dev


def existing(folder: Path) -> Path:
    """Returns `folder`, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _reads_directly(folder: Path) -> bool | None:
    if not hasattr(os, "O_DIRECT"):
        return False
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix="headrace-probe-") as file:
        return _opens_directly(Path(file.name))
    with suppress(OSError):  # it may not be written, but what lies there may do
        for file_there in islice(folder.iterdir(), _PROBED_FILES):
            if file_there.is_file():
                return _opens_directly(file_there)
    return None


def _opens_directly(file: Path) -> bool | None:
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT))
    except OSError as error:
        return False if error.errno == errno.EINVAL else None
    return True
