"""The seam between a device and its host: memory on either side, and a link that copies between the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from headrace.storage.aligned import AlignedBuffer
from headrace.storage.transfer import Transfer

Part = tuple[int, memoryview]
"""(offset in a buffer of the device, as many bytes of the host)."""


class Buffer(Protocol):
    """Memory where the computing is, with tensors in it."""

    @property
    def num_bytes(self) -> int:
        """Its size."""

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns a tensor over the bytes from `offset` on, which is a multiple of the dtype's size."""

    def end_use(self) -> None:
        """Says that only work which the device was given so far looks at the memory: it may be written after that."""

    def close(self) -> None:
        """Gives the memory back; no transfer may be under way."""


class Link(Protocol):
    """Copies in the order of the calls, one order for each direction; the directions do not wait for each other."""

    @property
    def bytes_per_second(self) -> float:
        """What it does, in one direction."""

    def device_memory(self, num_bytes: int) -> Buffer:
        """Returns memory of the device, zeros at first."""

    def host_memory(self, num_bytes: int) -> AlignedBuffer:
        """Returns memory of the host that the link copies from and to fast."""

    def upload(
        self,
        what: str,
        target: Buffer,
        parts: Sequence[Part],
        after: Transfer | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> Transfer:
        """Begins to copy the host's parts to `target`, once `after` has brought them and `target` is in nobody's use.

        `wait` of the transfer returns when work that the caller gives to the device from then on finds the bytes there.
        `release` is called, in a thread of the link, when the host's memory is not needed any more.
        """

    def download(self, what: str, source: Buffer, parts: Sequence[Part]) -> Transfer:
        """Begins to copy to the host's parts what `source` holds after all work that the device was given so far."""

    def close(self) -> None:
        """Ends what was begun, and the threads; a second call does nothing."""
