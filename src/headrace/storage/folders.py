"""Where Headrace keeps what it writes for itself."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import DiskSpaceError, OptionError
from headrace.units import MIB, format_bytes, parse_bytes

_SPARE_BYTES = 64 * MIB
"""Left free on every disk."""
WEIGHTS_FOLDER, CALIBRATIONS_FOLDER = "weights", "calibrations"
"""What lies where in a folder that Headrace writes into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskTier:
    """A folder that may be written, and how many bytes may lie there; None: what its disk has room for."""

    folder: Path
    limit_bytes: int | None = None

    @property
    def free_bytes(self) -> int:
        """What may still be written, by the limit and by the disk; 0 where nobody can tell."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free - _SPARE_BYTES
            limit = sys.maxsize if self.limit_bytes is None else self.limit_bytes - self._used_bytes()
        except OSError:
            return 0
        return max(0, min(free, limit))

    def _used_bytes(self) -> int:
        num_bytes = 0
        for file in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # another process has just removed it
                num_bytes += file.stat().st_size if file.is_file() else 0
        return num_bytes

    def require(self, what: str, num_bytes: int) -> None:
        """Checks that `num_bytes` more may be written for `what`, and makes the folder; writes nothing.

        Raises:
            DiskSpaceError: the disk, or the limit, leaves too little room, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            used = self._used_bytes()
            free = shutil.disk_usage(self.folder).free - _SPARE_BYTES
        except OSError as error:
            raise DiskSpaceError(
                f"{self.folder}: cannot write: {error.strerror}; name another folder with --disk FOLDER"
            ) from error
        if self.limit_bytes is not None and used + num_bytes > self.limit_bytes:
            raise DiskSpaceError(
                f"{what} needs {format_bytes(num_bytes)} in {self.folder}; --disk allows "
                f"{format_bytes(self.limit_bytes)}, {format_bytes(used)} of which is used; "
                f"allow {format_bytes(used + num_bytes)}"
            )
        if num_bytes > free:
            raise DiskSpaceError(
                f"{what} needs {format_bytes(num_bytes)} in {self.folder}, whose disk has "
                f"{format_bytes(max(0, free))} to spare; make room there, or name another disk's with --disk FOLDER"
            )


def parse_disk(text: str | None) -> DiskTier:
    """`/fast/ssd:60GiB` -> that folder with that limit; without a folder, the user's cache folder.

    Raises:
        OptionError: what stands after the last colon is no size.
    """
    if text is None:
        return DiskTier(folder=cache_folder())
    folder, colon, size = text.rpartition(":")
    if not colon:
        return DiskTier(folder=Path(text).expanduser())
    if not folder or "/" in size:
        raise OptionError(f"--disk is {text!r}; expected FOLDER or FOLDER:SIZE, like /fast/ssd:60GiB")
    return DiskTier(folder=Path(folder).expanduser(), limit_bytes=parse_bytes(size))


def cache_folder() -> Path:
    """`$HEADRACE_CACHE`, or `headrace` in the folder that the desktop standard names for caches."""
    own = os.environ.get("HEADRACE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"
