"""A device that is none: host memory with a budget and a link of its own, so that every path is tested on any machine.

What is on its way to it holds NaN until it has arrived: whoever computes too early is found out by the tokens.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.errors import OptionError
from headrace.storage.throttle import Throttle
from headrace.storage.transfer import Transfer
from headrace.trace import NoTrace, Trace
from headrace.units import parse_bytes, parse_rate

PREFIX = "simulated:"
_NAN_BYTE = 0xFF
"""Repeated, it is NaN in every float type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedDevice:
    """What a `--device simulated:2GiB,8GB/s` has."""

    memory_bytes: int
    bytes_per_second: float


def parse_simulated(name: str) -> SimulatedDevice | None:
    """`simulated:2GiB,8GB/s` -> that device; None for other names.

    Raises:
        OptionError: size or rate cannot be read.
    """
    if not name.startswith(PREFIX):
        return None
    size, comma, rate = name.removeprefix(PREFIX).partition(",")
    if not comma:
        raise OptionError(f"device is {name!r}; expected simulated:SIZE,RATE, like simulated:2GiB,8GB/s")
    return SimulatedDevice(memory_bytes=parse_bytes(size), bytes_per_second=parse_rate(rate))


@dataclass(frozen=True, slots=True)
class _Copy:
    target: memoryview
    source: memoryview
    transfer: Transfer
    after: Transfer | None
    release: Callable[[], None]


class SimulatedLink:
    """Copies between host and device in the order of the calls, at the link's rate. `close` ends its thread."""

    def __init__(self, device: SimulatedDevice, trace: Trace | None = None) -> None:
        self.bytes_per_second = device.bytes_per_second
        self._throttle = Throttle(device.bytes_per_second)
        self._trace = trace or NoTrace()
        self._copies: queue.SimpleQueue[_Copy | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="headrace-link", daemon=True)
        self._thread.start()

    def upload(
        self,
        what: str,
        copies: Sequence[tuple[memoryview, memoryview]],
        after: Transfer | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> Transfer:
        """Begins to copy (device, host) pairs to the device, once `after` has brought the host's part.

        `release` is called for each pair, in the link's thread, when its host memory is not needed any more.
        """
        for target, _ in copies:
            poison(target)
        return self._begin(what, copies, after, release)

    def download(self, what: str, copies: Sequence[tuple[memoryview, memoryview]]) -> Transfer:
        """Begins to copy (host, device) pairs to the host."""
        return self._begin(what, copies, None, lambda: None)

    def close(self) -> None:
        """Ends what was begun, and the thread; a second call does nothing."""
        if self._thread is not None:
            self._copies.put(None)
            self._thread.join()
            self._thread = None

    def _begin(
        self,
        what: str,
        copies: Sequence[tuple[memoryview, memoryview]],
        after: Transfer | None,
        release: Callable[[], None],
    ) -> Transfer:
        transfer = Transfer(what, len(copies))
        for target, source in copies:
            self._copies.put(_Copy(target, source, transfer, after, release))
        return transfer

    def _work(self) -> None:
        # One thread writes the targets, and nobody reads them before their transfer is complete.
        while (copy := self._copies.get()) is not None:
            error: Exception | None = None
            try:
                if copy.after is not None:
                    copy.after.wait()
                with self._trace.span("headrace-link", copy.transfer.what, num_bytes=len(copy.source)):
                    self._throttle.pass_bytes(len(copy.source))
                    move(copy.target, copy.source)
            except Exception as raised:  # whoever waits for the transfer gets it
                error = raised
            if copy.after is not None:
                copy.after.settle()
            copy.release()
            copy.transfer.finish_part(error)
            del copy


def move(target: memoryview, source: memoryview) -> None:
    """Copies bytes without the interpreter's lock."""
    ctypes.memmove(_address(target), _address(source), len(source))


def poison(memory: memoryview) -> None:
    """Fills memory with NaN."""
    ctypes.memset(_address(memory), _NAN_BYTE, len(memory))


def _address(memory: memoryview) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * len(memory)).from_buffer(memory)
