"""Lines that finish in any order, written in theirs: the output file is always the longest finished prefix.

finished    0 1 2 3 . 5 . . 8 9
output      0 1 2 3                 grows when 4 is put, by 4 and 5
spool               5     8 9       a file without a name; memory holds where each line lies in it
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Self

from headrace.errors import OptionError, UsageError

_STREAM = "-"


class OrderedOutput:
    """The output of a job. Used as a context manager, or `open` and `close`.

    Nothing is touched before `open`; a job that fails while its model loads leaves an older output as it was.

    Args:
        path: a file, or `-` for stdout.
        overwrite: replace a file that holds something already.
    """

    def __init__(self, path: str, *, overwrite: bool = False) -> None:
        self.name = "stdout" if path == _STREAM else path
        self.num_written = 0
        self._path = None if path == _STREAM else Path(path)
        self._overwrite = overwrite
        self._file: BinaryIO | None = None
        self._spool: IO[bytes] | None = None
        self._spooled: dict[int, tuple[int, int]] = {}  # index -> (offset, length) in the spool
        self._spool_end = 0
        self._written_bytes = 0

    @property
    def spooled_bytes(self) -> int:
        """How much waits on disk for an earlier row."""
        return self._spool_end

    def check(self, *, input_path: Path | None = None) -> None:
        """Says now what `open` would say, before anything expensive is done.

        Raises:
            OptionError: the folder is missing, the file holds something and may not be replaced, or it is the input.
        """
        if self._path is None:
            return
        if not self._path.parent.is_dir():
            raise OptionError(f"cannot write {self.name}: the folder {self._path.parent} does not exist; create it")
        if self._path.is_dir():
            raise OptionError(f"cannot write {self.name}: it is a folder; give a file name")
        if input_path is not None and self._path.exists() and self._path.samefile(input_path):
            raise OptionError(f"the output {self.name} is the input; give another output file")
        if self._path.is_file() and self._path.stat().st_size > 0 and not self._overwrite:
            raise OptionError(f"{self.name} exists; give another file, or --overwrite to replace it")
        writable = self._path if self._path.exists() else self._path.parent
        if not os.access(writable, os.W_OK):
            raise OptionError(f"cannot write {self.name}: permission denied on {writable}")

    def open(self) -> None:
        """Creates or replaces the file, empty.

        Raises:
            OptionError: as `check`, which is made once more.
            UsageError: the system refuses.
        """
        self.check()
        if self._path is None:
            self._file = sys.stdout.buffer
            return
        try:
            self._file = self._path.open("wb", buffering=0)
        except OSError as error:
            raise self._failure(error) from error

    def put(self, index: int, line: bytes) -> None:
        """Takes the finished line of row `index`; what is now a finished prefix is in the file on return.

        Raises:
            UsageError: the disk is full or fails. The file ends with a whole line.
        """
        if index != self.num_written:
            self._to_spool(index, line)
            return
        self._write(line)
        self.num_written += 1
        while self.num_written in self._spooled:
            self._write(self._from_spool(self.num_written))
            self.num_written += 1

    def drain(self) -> int:
        """Writes the finished lines beyond the first unfinished one too, in order, and returns how many those were.

        For a job that ends early: afterwards the file has every finished row, and gaps where the others would be.
        """
        waiting = sorted(self._spooled)
        for index in waiting:
            self._write(self._from_spool(index))
        return len(waiting)

    def close(self) -> None:
        """Makes the file durable and removes the spool. May be called twice."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        file, self._file = self._file, None
        if file is None:
            return
        try:
            if self._path is None:
                file.flush()
            else:
                with file:
                    if self._path.is_file():
                        os.fsync(file.fileno())
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        assert self._file is not None, "open first"
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            self._cut_off_partial_line()
            raise self._failure(error) from error
        self._written_bytes += len(line)

    def _cut_off_partial_line(self) -> None:
        if self._file is not None and self._path is not None and self._path.is_file():
            os.ftruncate(self._file.fileno(), self._written_bytes)

    def _to_spool(self, index: int, line: bytes) -> None:
        try:
            if self._spool is None:
                folder = None if self._path is None else self._path.parent
                self._spool = tempfile.TemporaryFile(dir=folder, prefix=".headrace-", buffering=0)  # noqa: SIM115
            self._spool.seek(self._spool_end)
            rest = memoryview(line)
            while rest:
                rest = rest[self._spool.write(rest) :]
        except OSError as error:
            raise self._failure(error) from error
        self._spooled[index] = (self._spool_end, len(line))
        self._spool_end += len(line)

    def _from_spool(self, index: int) -> bytes:
        assert self._spool is not None, "something is spooled"
        offset, length = self._spooled.pop(index)
        self._spool.seek(offset)
        line = self._spool.read(length)
        assert len(line) == length, f"the spool ends in the line of row {index}"
        if not self._spooled:
            self._spool.truncate(0)
            self._spool_end = 0
        return line

    def _failure(self, error: OSError) -> UsageError:
        reason = error.strerror or str(error)
        return UsageError(f"cannot write {self.name}: {reason}; it holds the {self.num_written} rows finished so far")
