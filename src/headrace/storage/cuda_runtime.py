"""The few calls of `torch.cuda` that a link is made of: streams, events, copies, pinning. ROCm has the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

_PORTABLE = 1
"""`cudaHostRegisterPortable`: pinned for every device."""


class DeviceEvent(Protocol):
    """A place in the work of a stream."""

    def synchronize(self) -> None:
        """Returns when the work before it is done."""


class DeviceStream(Protocol):
    """Work that the device does in order."""

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Gives it copies of (target, source) bytes, one of each pair on the host; returns before they are made."""

    def record(self) -> DeviceEvent:
        """Returns the event behind all work that it was given so far."""

    def wait(self, event: DeviceEvent) -> None:
        """Has the work that it is given from now on begin after `event`; returns at once."""


class DeviceRuntime(Protocol):
    """What a link needs of a device."""

    def compute_stream(self) -> DeviceStream:
        """Returns the stream that the calling thread computes on."""

    def new_stream(self) -> DeviceStream:
        """Returns a stream that waits for no other one by itself."""

    def zeros(self, num_bytes: int) -> Tensor:
        """Returns bytes of the device, on the stream that the calling thread computes on."""

    def pin(self, address: int, num_bytes: int) -> bool:
        """Keeps memory of the host where it is, so that copies are direct and overlap; returns whether that is so."""

    def unpin(self, address: int) -> None:
        """Undoes `pin`."""


class CudaRuntime:
    """See `DeviceRuntime`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def compute_stream(self) -> CudaStream:
        return CudaStream(torch.cuda.current_stream(self._device))

    def new_stream(self) -> CudaStream:
        # Streams of torch's pool are made not to wait for the default stream.
        return CudaStream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]

    def zeros(self, num_bytes: int) -> Tensor:
        # Not an inference tensor, whoever asks: those may be written in inference mode alone.
        with torch.inference_mode(False):
            return torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def pin(self, address: int, num_bytes: int) -> bool:
        # torch's own code for it: torch/cuda/_pin_memory_utils.py
        refused = torch.cuda.cudart().cudaHostRegister(address, num_bytes, _PORTABLE)  # type: ignore[no-untyped-call]
        if int(refused) == 0:
            return True
        # CUDA remembers the refusal as this thread's last error, which the next kernel would report as its own.
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)
        return False

    def unpin(self, address: int) -> None:
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


class CudaStream:
    """See `DeviceStream`."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        # All of these are the calling thread's own; in inference mode any tensor may be written.
        with torch.cuda.stream(self._stream), torch.inference_mode():
            for target, source in pairs:
                target.copy_(source, non_blocking=True)

    def record(self) -> torch.cuda.Event:
        # A blocking event lets the thread that waits for it sleep, where others would keep a core busy.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def wait(self, event: DeviceEvent) -> None:
        assert isinstance(event, torch.cuda.Event)
        self._stream.wait_event(event)
