"""Calls `headrace_int8_linear` and `headrace_int4_linear`: products of tokens in 8 bits and packed weights on a CPU."""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from headrace.kernels.types import TYPES


class _PackedLinear(Structure):
    """`headrace::PackedLinear` of packed_linear.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input", "weight", "bias", "output")),
        *((name, c_int64) for name in ("num_tokens", "num_inputs", "num_outputs")),
        *((name, c_int32) for name in ("type", "num_threads", "group_inputs")),
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
    """Returns `tokens` (T, K), each rounded to 8 bits, by the transpose of a weight (N, K), plus `bias` (N).

    Args:
        tokens: of one of `TYPES`, contiguous.
        packed: the weight in 8 bits as `packing.h` says, contiguous.
        bias: contiguous, of the tokens' dtype.
        outliers: numbers of at least this magnitude are not rounded.
    """
    call, output = _call(tokens, packed, bias, num_outputs)
    call.outliers = outliers or 0.0
    library.headrace_int8_linear(byref(call))
    return output


def int4_linear(
    library: ctypes.CDLL, tokens: Tensor, packed: Tensor, bias: Tensor | None, num_outputs: int, group_size: int
) -> Tensor:
    """Does the same with a weight in 4 bits; weight and tokens are rounded group by group of `group_size` inputs."""
    call, output = _call(tokens, packed, bias, num_outputs)
    call.group_inputs = group_size
    library.headrace_int4_linear(byref(call))
    return output


def _call(tokens: Tensor, packed: Tensor, bias: Tensor | None, num_outputs: int) -> tuple[_PackedLinear, Tensor]:
    """Returns what to call with, and the tensor (T, N) that is written."""
    output = tokens.new_empty(len(tokens), num_outputs)
    call = _PackedLinear(
        input=tokens.data_ptr(),
        weight=packed.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        output=output.data_ptr(),
        num_tokens=len(tokens),
        num_inputs=tokens.shape[1],
        num_outputs=num_outputs,
        type=TYPES[tokens.dtype],
        num_threads=torch.get_num_threads(),
    )
    return call, output
