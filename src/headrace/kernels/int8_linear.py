"""Calls `headrace_int8_linear`: products of tokens and weights in 8 bits on a CPU."""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from headrace.kernels.types import TYPES


class _Int8Linear(Structure):
    """`headrace::Int8Linear` of int8_linear.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input", "weight", "bias", "output")),
        *((name, c_int64) for name in ("num_tokens", "num_inputs", "num_outputs")),
        *((name, c_int32) for name in ("type", "num_threads")),
        ("outliers", c_float),
    )


def int8_linear(
    library: ctypes.CDLL,
    tokens: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    num_outputs: int,
    outliers: float | None = None,
) -> Tensor:
    """Returns `tokens` (T, K), rounded to 8 bits, by the transpose of a weight (N, K), plus `bias` (N).

    Args:
        tokens: of one of `TYPES`, contiguous.
        packed: the weight as `packing.h` says, contiguous.
        bias: contiguous, of the tokens' dtype.
        outliers: numbers of at least this magnitude are not rounded.
    """
    output = tokens.new_empty(len(tokens), num_outputs)
    call = _Int8Linear(
        input=tokens.data_ptr(),
        weight=packed.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        output=output.data_ptr(),
        num_tokens=len(tokens),
        num_inputs=tokens.shape[1],
        num_outputs=num_outputs,
        type=TYPES[tokens.dtype],
        num_threads=torch.get_num_threads(),
        outliers=outliers or 0.0,
    )
    library.headrace_int8_linear(byref(call))
    return output
