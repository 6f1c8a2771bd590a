"""A double of the device calls that a `CudaLink` is made of: streams that do their work late, on memory of the host.

What a real device may do at many times is done here at the one time that finds mistakes out:

* Work of a stream is done only when somebody waits for it, in the stream's order, and after what that order names.
* Bytes on their way to the device hold NaN. `lands="late"`: they arrive only for a stream that waited for them on the
  device; `lands="early"`: as soon as the link's thread waits, over whatever is still in use there.
* Host memory is read when the link's thread waits, not before.
* `computes="late"`: work that a test gives to the compute stream by `compute` waits, too; `computes="at once"`: the
  compute stream does everything when it is asked for, as torch on a processor does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from headrace.storage.aligned import PAGE_BYTES
from headrace.storage.cuda_runtime import DeviceEvent

NAN_BYTE = 0xFF


@dataclass(frozen=True, eq=False)
class LateEvent:
    """The place behind the first `position` works of a stream."""

    stream: LateStream
    position: int

    def synchronize(self) -> None:
        runtime = self.stream.runtime
        with runtime.lock:
            runtime.run(self, lands=runtime.lands == "early")


@dataclass(eq=False)
class _Copy:
    """One call of `copy`."""

    pairs: Sequence[tuple[Tensor, Tensor]]
    to_device: bool
    taken: list[Tensor] | None = None

    def begin(self) -> None:
        """Reads the sources, and spoils targets on the device."""
        self.taken = [source.clone() for _, source in self.pairs]
        if self.to_device:
            for target, _ in self.pairs:
                target.fill_(NAN_BYTE)

    def land(self) -> None:
        if self.taken is not None:
            for (target, _), taken in zip(self.pairs, self.taken, strict=True):
                target.copy_(taken)
        self.taken = None


@dataclass(eq=False)
class LateStream:
    """See `headrace.storage.cuda_runtime.DeviceStream`."""

    runtime: LateRuntime
    at_once: bool = False
    works: list[_Copy | LateEvent | Callable[[], object]] = field(default_factory=list)
    num_begun: int = 0
    num_landed: int = 0

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        to_device = any(self.runtime.is_on_device(target) for target, _ in pairs)
        assert all(len(target) == len(source) for target, source in pairs)
        self.add(_Copy(pairs, to_device))

    def record(self) -> LateEvent:
        with self.runtime.lock:
            return LateEvent(self, len(self.works))

    def wait(self, event: DeviceEvent) -> None:
        assert isinstance(event, LateEvent)
        self.add(event)

    def add(self, work: _Copy | LateEvent | Callable[[], object]) -> None:
        with self.runtime.lock:
            self.works.append(work)
            if self.at_once:
                self.runtime.run(LateEvent(self, len(self.works)), lands=True)


class LateRuntime:
    """See `headrace.storage.cuda_runtime.DeviceRuntime`."""

    def __init__(
        self,
        *,
        lands: Literal["early", "late"] = "late",
        computes: Literal["late", "at once"] = "at once",
        refuses_to_pin: bool = False,
    ) -> None:
        self.lands = lands
        self.lock = threading.RLock()
        self.pinned: dict[int, int] = {}
        self._refuses_to_pin = refuses_to_pin
        self._compute = LateStream(self, at_once=computes == "at once")
        self._memories: list[Tensor] = []

    def compute_stream(self) -> LateStream:
        return self._compute

    def new_stream(self) -> LateStream:
        return LateStream(self)

    def zeros(self, num_bytes: int) -> Tensor:
        with torch.inference_mode(False):
            memory = torch.zeros(num_bytes, dtype=torch.uint8)
        self._memories.append(memory)
        return memory

    def pin(self, address: int, num_bytes: int) -> bool:
        assert address % PAGE_BYTES == 0 and num_bytes > 0 and address not in self.pinned
        if not self._refuses_to_pin:
            self.pinned[address] = num_bytes
        return not self._refuses_to_pin

    def unpin(self, address: int) -> None:
        del self.pinned[address]

    def compute(self, work: Callable[[], object]) -> None:
        """Gives work to the compute stream."""
        self._compute.add(work)

    def finish(self) -> None:
        """Has the compute stream do all that it was given."""
        with self.lock:
            self.run(self._compute.record(), lands=True)

    def is_on_device(self, memory: Tensor) -> bool:
        address = memory.data_ptr()
        return any(own.data_ptr() <= address < own.data_ptr() + len(own) for own in self._memories)

    def run(self, event: LateEvent, *, lands: bool) -> None:
        """Does the work before `event`. Copies to the device arrive only where `lands`; others always do."""
        stream = event.stream
        while stream.num_begun < event.position:
            work = stream.works[stream.num_begun]
            stream.num_begun += 1
            if isinstance(work, LateEvent):
                self.run(work, lands=True)
            elif isinstance(work, _Copy):
                work.begin()
                if not work.to_device:
                    work.land()
            else:
                work()
        if not lands:
            return
        for work in stream.works[stream.num_landed : event.position]:
            if isinstance(work, _Copy):
                work.land()
        stream.num_landed = max(stream.num_landed, event.position)
