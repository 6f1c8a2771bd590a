"""Positioned reads of byte ranges straight into the memory they are for: no mmap, no copy in between."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError
from headrace.storage.file_state import FileState
from headrace.storage.throttle import Throttle

# One call reads at most this much, so that an interrupt is noticed within a moment even on a slow disk.
_MAX_CALL_BYTES = 64 * 1024**2


class RangeReader:
    """Reads byte ranges of files, each opened once. A context manager; `close` closes the files.

    Not for several threads at once while files are being opened for the first time.
    """

    def __init__(self, throttle: Throttle | None = None) -> None:
        self._descriptors: dict[Path, int] = {}
        self._states: dict[Path, FileState] = {}
        self._throttle = throttle

    def read_into(self, file: Path, offset: int, buffer: memoryview) -> None:
        """Fills the whole of `buffer` (writable, contiguous bytes) from `file` at `offset`.

        Raises:
            CheckpointNotFoundError: the file is gone or may not be read.
            CorruptCheckpointError: the file ends before the range does, it has changed since it was opened, or
                the disk reports an error.
        """
        descriptor = self._descriptor(file)
        if self._throttle is not None:
            self._throttle.pass_bytes(len(buffer))
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(descriptor, [buffer[done : done + _MAX_CALL_BYTES]], offset + done)
            except OSError as error:
                raise CorruptCheckpointError(
                    f"{file}: cannot read {len(buffer) - done} bytes at {offset + done}: {error.strerror}; "
                    "check the disk, then download or copy the file again"
                ) from error
            if count == 0:
                raise CorruptCheckpointError(
                    f"{file}: ends at byte {offset + done}; expected data up to byte {offset + len(buffer)}; "
                    "it was truncated while in use; download or copy the file again"
                )
            done += count
        if FileState.of(descriptor) != self._states[file]:
            raise CorruptCheckpointError(
                f"{file}: changed while it was in use; start again, and leave the file alone until the end"
            )

    def close(self) -> None:
        """Closes every file. Reading afterwards opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            try:
                self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointNotFoundError(
                    f"cannot open {file}: {error.strerror}; download or copy the file again"
                ) from error
            self._states[file] = FileState.of(self._descriptors[file])
        return self._descriptors[file]
