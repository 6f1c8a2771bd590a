"""The input of a job: a file that can be read twice, or a stream that cannot."""

from __future__ import annotations

import contextlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from headrace.errors import OptionError


class RowInput:
    """Where rows come from.

    Attributes:
        name: for messages.
        path: the regular file it is; None for stdin, a pipe or a device.

    Args:
        path: a file, or `-` for stdin.

    Raises:
        OptionError: there is no such file, or it may not be read.
    """

    def __init__(self, path: str) -> None:
        self.name = "stdin" if path == "-" else path
        self.path: Path | None = None
        self._source = path
        if path == "-":
            return
        try:
            mode = Path(path).stat().st_mode
        except OSError as error:
            raise OptionError(f"cannot read {path}: {error.strerror}; give a file of rows, or - for stdin") from None
        if stat.S_ISDIR(mode):
            raise OptionError(f"cannot read {path}: it is a folder; give a file of rows, or - for stdin")
        if stat.S_ISREG(mode):
            self.path = Path(path)

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Opens it at its start; a stream gives only once what it gives.

        Raises:
            OptionError: the system refuses.
        """
        if self._source == "-":
            yield sys.stdin.buffer
            return
        try:
            file = Path(self._source).open("rb")  # noqa: SIM115
        except OSError as error:
            raise OptionError(f"cannot read {self.name}: {error.strerror}") from error
        with file:
            yield file
