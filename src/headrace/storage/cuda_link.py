"""The link of a CUDA device: a stream and a thread for each direction, pinned host memory, and events between them.

Three things run beside each other: the driver thread, which gives the compute stream its work and is far ahead of it;
the link's threads; and the device. What must come after what is said by events on the device, not by waiting:

    upload stream    wait(free) | copy | arrived
    compute stream   wait(arrived) | work that reads the bytes | free
    download stream  wait(written) | copy | home, for which the link's thread waits
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from headrace.storage.aligned import AlignedBuffer
from headrace.storage.cuda_runtime import DeviceEvent, DeviceRuntime
from headrace.storage.job_thread import JobThread
from headrace.storage.link import Buffer, Part
from headrace.storage.transfer import Transfer
from headrace.trace import NoTrace, Trace
from headrace.units import MIB

_log = logging.getLogger(__name__)
_MEASURED_BYTES = 32 * MIB
_MEASUREMENTS = 3


class CudaLink:
    """See `Link`. The thread that calls it is the one that gives the compute stream its work."""

    def __init__(self, runtime: DeviceRuntime, *, pins: bool = True, trace: Trace | None = None) -> None:
        """`pins`: whether host memory is pinned; where that is refused, copies take longer and are still right."""
        self._runtime = runtime
        self._pins = pins
        self._trace = trace or NoTrace()
        self._streams = {name: runtime.new_stream() for name in ("upload", "download")}
        self._threads = {name: JobThread(f"headrace-{name}") for name in self._streams}

    @cached_property
    def bytes_per_second(self) -> float:
        """Measured when it is first asked for, with 32 MiB on each side."""
        seconds = []
        with self.host_memory(_MEASURED_BYTES) as host:
            device = self.device_memory(_MEASURED_BYTES)
            for _ in range(_MEASUREMENTS):
                start = time.perf_counter()
                self.upload("a measurement", device, [(0, host.bytes)]).settle()
                seconds.append(time.perf_counter() - start)
            device.close()
        return _MEASURED_BYTES / min(seconds)

    def device_memory(self, num_bytes: int) -> DeviceBuffer:
        return DeviceBuffer(self._runtime, num_bytes)

    def host_memory(self, num_bytes: int) -> AlignedBuffer:
        if not self._pins:
            return AlignedBuffer(num_bytes)
        buffer = PinnedBuffer(self._runtime, num_bytes)
        if not buffer.is_pinned:
            self._pins = False  # asking for each buffer again would cost time, and say the same each time
            _log.warning("host memory cannot be pinned here: copies between it and the GPU are slower")
        return buffer

    def upload(
        self,
        what: str,
        target: Buffer,
        parts: Sequence[Part],
        after: Transfer | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> Transfer:
        assert isinstance(target, DeviceBuffer)
        upload = _Upload(what, self._runtime)
        # Taken here, in the driver's thread: `end_use` recorded it behind the last work that looks at the target.
        free, stream = target.free, self._streams["upload"]

        def copy() -> None:
            stream.wait(free)
            pairs = [(target.part(offset, len(host)), _tensor(host)) for offset, host in parts]
            self._copy("upload", what, pairs, upload.issued)

        self._threads["upload"].put(lambda: upload.carry_out(copy, after=after, release=release))
        return upload

    def download(self, what: str, source: Buffer, parts: Sequence[Part]) -> Transfer:
        assert isinstance(source, DeviceBuffer)
        transfer = Transfer(what, 1)
        # Recorded here, in the driver's thread: behind the work that writes the source, which it has given already.
        written, stream = self._runtime.compute_stream().record(), self._streams["download"]

        def copy() -> None:
            stream.wait(written)
            pairs = [(_tensor(host), source.part(offset, len(host))) for offset, host in parts]
            self._copy("download", what, pairs, lambda _: None)

        self._threads["download"].put(lambda: transfer.carry_out(copy))
        return transfer

    def close(self) -> None:
        for thread in self._threads.values():
            thread.close()

    def _copy(
        self,
        lane: str,
        what: str,
        pairs: Sequence[tuple[Tensor, Tensor]],
        issued: Callable[[DeviceEvent], None],
    ) -> None:
        """Copies on a direction's stream, in its thread; returns when the bytes are there."""
        stream = self._streams[lane]
        num_bytes = sum(len(target) for target, _ in pairs)
        with self._trace.span(self._threads[lane].name, what, num_bytes=num_bytes):
            try:
                stream.copy(pairs)
            except BaseException:
                stream.record().synchronize()  # what was begun must not touch memory that others take next
                raise
            event = stream.record()
            issued(event)
            # Only when the device has made the copies is the host's memory free (uploads) or filled (downloads).
            event.synchronize()


class DeviceBuffer:
    """See `Buffer`: bytes of the device, and the event after which they may be written.

    The memory goes back to torch's allocator, which gives it to work of the compute stream: safe, since the copies of
    other streams have ended before it is closed.
    """

    def __init__(self, runtime: DeviceRuntime, num_bytes: int) -> None:
        self._runtime = runtime
        self._memory = runtime.zeros(num_bytes)
        self.num_bytes = num_bytes
        # The zeros are written by the compute stream, and what had the memory before may be at work there.
        self.free = runtime.compute_stream().record()

    def part(self, offset: int, num_bytes: int) -> Tensor:
        """Returns some of the bytes."""
        return self._memory[offset : offset + num_bytes]

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        return self.part(offset, num_bytes).view(dtype).view(shape)

    def end_use(self) -> None:
        # The driver calls this behind the last work that looks at the bytes, and streams keep their order.
        self.free = self._runtime.compute_stream().record()

    def close(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)


class PinnedBuffer(AlignedBuffer):
    """Host memory of a mapping of its own that stays where it is, if the system allows it."""

    def __init__(self, runtime: DeviceRuntime, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self._runtime = runtime
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self.is_pinned = runtime.pin(self._address, self.num_bytes)

    def close(self) -> None:
        if self.is_pinned:
            self._runtime.unpin(self._address)  # before the mapping goes
            self.is_pinned = False
        super().close()


class _Upload(Transfer):
    """Is complete when the device has made the copies; whoever computes with them need not wait for that."""

    def __init__(self, what: str, runtime: DeviceRuntime) -> None:
        super().__init__(what, 1)
        self._runtime = runtime
        self._arrived: DeviceEvent | None = None
        self._is_issued = threading.Event()

    def issued(self, arrived: DeviceEvent) -> None:
        """Notes the event behind the copies."""
        self._arrived = arrived
        self._is_issued.set()

    def finish_part(self, error: Exception | None = None) -> None:
        super().finish_part(error)
        self._is_issued.set()

    def wait(self) -> None:
        self._is_issued.wait()
        if self._arrived is None:
            super().wait()  # raises: without an event there is an error
            return
        # The calling thread's work comes behind the copies on the device; the thread itself goes on at once.
        self._runtime.compute_stream().wait(self._arrived)


def _tensor(host: memoryview) -> Tensor:
    return torch.frombuffer(host, dtype=torch.uint8)
