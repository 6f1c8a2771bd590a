"""Tensors of zeros that cost no memory until they are used."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from headrace.storage.aligned import PAGE_BYTES


def zero_pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns zeros; in host memory they begin at a page, and the system provides each page when it is first touched.

    `torch.zeros` writes every byte, so that a KV cache of many gigabytes would be resident from the start; numpy asks
    the system for pages that are zero already.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(num_bytes + PAGE_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % PAGE_BYTES
    return torch.from_numpy(raw[start : start + num_bytes]).view(dtype).view(shape)
