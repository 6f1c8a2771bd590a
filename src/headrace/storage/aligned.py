"""Host memory of its own mapping: page-aligned, so that direct reads can write into it, and given back at once."""

from __future__ import annotations

import mmap
from contextlib import suppress
from types import TracebackType

import torch
from torch import Tensor

from headrace.units import MIB

PAGE_BYTES = 4096
"""What O_DIRECT wants file offsets, lengths and addresses to be multiples of, on every disk we know."""
HUGE_PAGE_BYTES = 2 * MIB
"""What processors' and systems' larger pages have on x86, and on ARM with pages of 4 KiB."""
# Python's default is memory that other processes could share, which Linux gives no huge pages.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def pages_below(position: int) -> int:
    """Returns the last page border at or below `position`."""
    return position // PAGE_BYTES * PAGE_BYTES


def pages_above(position: int) -> int:
    """Returns the first page border at or above `position`."""
    return -(-position // PAGE_BYTES) * PAGE_BYTES


class AlignedBuffer:
    """Anonymous memory of its own mapping. `close` gives it back to the system, unless a tensor still looks at it.

    Where it is large, its pages are huge ones, if the system has them for those that ask (`madvise` or `always` in
    /sys/kernel/mm/transparent_hugepage/enabled): reading takes a sixth less time.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = pages_above(num_bytes)
        self._map = mmap.mmap(-1, max(PAGE_BYTES, self.num_bytes), **_PRIVATE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # systems that cannot simply decline
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = memoryview(self._map)

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns a tensor over the bytes from `offset` on, which is a multiple of the dtype's size."""
        num_bytes = dtype.itemsize
        for size in shape:
            num_bytes *= size
        if num_bytes == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.bytes[offset : offset + num_bytes], dtype=dtype).view(shape)

    def end_use(self) -> None:
        """Does nothing: a processor has done its work when a call returns, so that the memory may be written."""

    def close(self) -> None:
        """Gives the memory back; where tensors still look at it, the last of them does that."""
        with suppress(BufferError):
            self.bytes.release()
            self._map.close()

    def __enter__(self) -> AlignedBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
