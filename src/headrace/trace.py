"""What happened when, as a file that Perfetto and chrome://tracing show: https://ui.perfetto.dev

Spans lie on tracks: one for the sweeps, one for each micro-batch, one for each thread that moves bytes. The file is
written as the run goes on; the format allows its closing bracket to be missing, so that a killed run's can be read too.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Protocol

from headrace.errors import OptionError


class Trace(Protocol):
    """Records spans of time."""

    def span(self, track: str, name: str, **details: int | str) -> AbstractContextManager[None]:
        """Records the time between entering and leaving, on `track`; any thread may call it."""

    def close(self) -> None:
        """Ends the record."""


class NoTrace:
    """Records nothing."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def span(self, track: str, name: str, **details: int | str) -> AbstractContextManager[None]:
        return self._nothing

    def close(self) -> None:
        pass


class TraceFile:
    """Writes Chrome's trace event format (JSON array of complete events). A context manager."""

    def __init__(self, path: Path) -> None:
        """Begins the file.

        Raises:
            OptionError: it cannot be written.
        """
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise OptionError(f"--trace {path}: cannot write: {error.strerror}; name another file") from error
        self._file.write("[\n")
        self._lock = threading.Lock()  # threads take turns; an event is one line
        self._tracks: dict[str, int] = {}
        self._start = time.perf_counter_ns()

    @contextmanager
    def span(self, track: str, name: str, **details: int | str) -> Iterator[None]:
        begin = time.perf_counter_ns()
        try:
            yield
        finally:
            self._write(track, name, begin, time.perf_counter_ns(), details)

    def close(self) -> None:
        """Completes the file; a second call does nothing."""
        with self._lock:
            if not self._file.closed:
                self._file.write('{"name": "end", "ph": "i", "ts": 0, "pid": 1, "tid": 0}\n]\n')
                self._file.close()

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, track: str, name: str, begin: int, end: int, details: dict[str, int | str]) -> None:
        microseconds = 1000
        with self._lock:
            if self._file.closed:
                return
            if track not in self._tracks:
                self._tracks[track] = len(self._tracks) + 1
                named = {
                    "name": "thread_name",
                    "ph": "M",
                    "pid": 1,
                    "tid": self._tracks[track],
                    "args": {"name": track},
                }
                self._file.write(json.dumps(named) + ",\n")
            event = {
                "name": name,
                "ph": "X",
                "ts": (begin - self._start) / microseconds,
                "dur": (end - begin) / microseconds,
                "pid": 1,
                "tid": self._tracks[track],
                "args": details,
            }
            self._file.write(json.dumps(event) + ",\n")
