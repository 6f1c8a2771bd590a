"""A device that is none: host memory with a budget and a link of its own, so that every path is tested on any machine.

What is on its way to it holds NaN until it has arrived: whoever computes too early is found out by the tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.errors import OptionError
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.job_thread import JobThread
from headrace.storage.link import Buffer, Part
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


class SimulatedLink:
    """See `Link`: two threads that copy, one for each direction, each at the link's rate."""

    def __init__(self, device: SimulatedDevice, trace: Trace | None = None) -> None:
        self._bytes_per_second = device.bytes_per_second
        self._trace = trace or NoTrace()
        self._lanes = {
            name: (JobThread(f"headrace-{name}"), Throttle(device.bytes_per_second)) for name in ("upload", "download")
        }

    @property
    def bytes_per_second(self) -> float:
        return self._bytes_per_second

    def device_memory(self, num_bytes: int) -> AlignedBuffer:
        return AlignedBuffer(num_bytes)

    def host_memory(self, num_bytes: int) -> AlignedBuffer:
        return AlignedBuffer(num_bytes)

    def upload(
        self,
        what: str,
        target: Buffer,
        parts: Sequence[Part],
        after: Transfer | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> Transfer:
        pairs = _pairs(target, parts)
        for own, _ in pairs:
            _poison(own)
        return self._begin("upload", what, pairs, after, release)

    def download(self, what: str, source: Buffer, parts: Sequence[Part]) -> Transfer:
        pairs = [(host, own) for own, host in _pairs(source, parts)]
        return self._begin("download", what, pairs, None, lambda: None)

    def close(self) -> None:
        for thread, _ in self._lanes.values():
            thread.close()

    def _begin(
        self,
        lane: str,
        what: str,
        pairs: Sequence[tuple[memoryview, memoryview]],
        after: Transfer | None,
        release: Callable[[], None],
    ) -> Transfer:
        transfer, (thread, throttle) = Transfer(what, 1), self._lanes[lane]

        def copy() -> None:
            # One thread writes the targets, and nobody reads them before their transfer is complete.
            num_bytes = sum(len(source) for _, source in pairs)
            with self._trace.span(thread.name, what, num_bytes=num_bytes):
                throttle.pass_bytes(num_bytes)
                for target, source in pairs:
                    ctypes.memmove(_address(target), _address(source), len(source))

        thread.put(lambda: transfer.carry_out(copy, after=after, release=release))
        return transfer


def _pairs(buffer: Buffer, parts: Sequence[Part]) -> list[tuple[memoryview, memoryview]]:
    assert isinstance(buffer, AlignedBuffer), "the device's memory is the host's"
    return [(buffer.bytes[offset : offset + len(host)], host) for offset, host in parts]


def _poison(memory: memoryview) -> None:
    ctypes.memset(_address(memory), _NAN_BYTE, len(memory))


def _address(memory: memoryview) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * len(memory)).from_buffer(memory)
