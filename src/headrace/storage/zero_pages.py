"""Tensors of zeros that cost no memory until they are used, and whose parts can be given back after that."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys

import torch
from torch import Tensor

from headrace.storage.aligned import AlignedBuffer, pages_above, pages_below


def zero_pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns zeros; in host memory they begin at a page, and the system provides each page when it is first touched.

    `torch.zeros` writes every byte, so that a KV cache of many gigabytes would be resident from the start.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return AlignedBuffer(math.prod(shape) * dtype.itemsize).tensor(0, shape, dtype)


def give_back_pages(tensor: Tensor, first: int, end: int) -> None:
    """Lets go of the whole pages among the rows `first` to `end` of a tensor that `zero_pages` made in host memory.

    They are zeros from then on, and take memory again when they are touched. Only Linux knows how; elsewhere nothing
    happens.
    """
    if sys.platform != "linux":
        return
    row_bytes = tensor[0].nbytes
    start, stop = pages_above(tensor.data_ptr() + first * row_bytes), pages_below(tensor.data_ptr() + end * row_bytes)
    if start < stop:
        # The pages are anonymous and private, so that the system brings new zeros where they were.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
