"""Reads that wait for a thread: first come, first served, but neighbours in a file are served together."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Read(Protocol):
    """Some bytes of a file."""

    @property
    def file(self) -> Hashable:
        """Which one."""

    @property
    def offset(self) -> int:
        """Of the first byte."""

    @property
    def num_bytes(self) -> int:
        """How many."""


R = TypeVar("R", bound=Read)


class ReadQueue(Generic[R]):
    """For several threads on both sides.

    Disks answer few large requests faster than many small ones. So whoever takes the oldest read gets with it those
    that begin where it ends, however much later they came, as long as they are no more than one large request.
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of reads that are taken together; one alone may have more."""
        self._max_bytes = max_bytes
        self._waiting: dict[int, R] = {}
        self._starts: dict[tuple[Hashable, int], int] = {}
        self._next = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, read: R) -> None:
        """Adds a read behind all others."""
        with self._changed:
            self._waiting[self._next] = read
            self._starts[read.file, read.offset] = self._next
            self._next += 1
            self._changed.notify()

    def take(self) -> list[R]:
        """Waits for a read; returns it with those that follow it in its file, or nothing once all is done."""
        with self._changed:
            while not self._waiting:
                if self._is_closed:
                    return []
                self._changed.wait()
            taken = [self._remove(next(iter(self._waiting)))]
            num_bytes = taken[0].num_bytes
            while (number := self._starts.get((taken[-1].file, taken[-1].offset + taken[-1].num_bytes))) is not None:
                num_bytes += self._waiting[number].num_bytes
                if num_bytes > self._max_bytes:
                    break
                taken.append(self._remove(number))
            return taken

    def close(self) -> None:
        """Lets `take` return nothing when all reads are taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _remove(self, number: int) -> R:
        read = self._waiting.pop(number)
        start = (read.file, read.offset)
        if self._starts.get(start) == number:  # the same bytes may have been asked for twice
            del self._starts[start]
        return read
