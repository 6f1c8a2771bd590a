"""The files of a checkpoint, and what of them the file cache holds. Free of torch."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CACHESTAT = 451
"""cachestat(2), which the C library has no function for; the same number on all architectures but Alpha."""


def weight_files(folder: Path) -> list[Path]:
    """Returns the files with weights, in the order of the layers."""
    return sorted(folder.glob("*.safetensors"))


def drop_from_cache(file: Path) -> None:
    """Makes the next reader of a written file read it from the disk."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(file: Path) -> int:
    """Returns how much of a file the file cache holds.

    Raises:
        OSError: the kernel does not say (Linux does from 6.5 on).
    """
    whole, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    with file.open("rb") as stream:
        if ctypes.CDLL(None, use_errno=True).syscall(_CACHESTAT, stream.fileno(), whole, found, 0):
            number = ctypes.get_errno()
            raise OSError(number, f"cachestat: {os.strerror(number)}")
    return found[0] * os.sysconf("SC_PAGE_SIZE")
