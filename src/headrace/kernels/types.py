"""The dtypes that the library reads and writes, and other numbers that it has in common with its callers."""

from __future__ import annotations

import torch

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""`headrace::Type` of types.h."""
MOST_WEIGHTS = 4
"""That the same tokens are multiplied with in one call; `headrace::MOST_WEIGHTS` of weights.h."""
_CODE_TYPES = {8: 3, 4: 4}


def is_known(tensor: torch.Tensor) -> bool:
    """Whether the library reads a tensor: on the CPU, of one of `TYPES`.

    How its numbers lie does not matter: that of one token looks contiguous where that of several does not, and a token
    must not be computed otherwise alone.
    """
    return tensor.is_cpu and tensor.dtype in TYPES


def page_type(pages: torch.Tensor, code_bits: int | None) -> int:
    """Returns the number of what pages of keys or values hold: numbers, or codes of so many bits."""
    return TYPES[pages.dtype] if code_bits is None else _CODE_TYPES[code_bits]
