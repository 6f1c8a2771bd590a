"""Calls `headrace_linear`: products of tokens and weights on a CPU, summed in fp32 in the order of the inputs."""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from headrace.kernels.types import TYPES


class _Linear(Structure):
    """`headrace::Linear` of linear.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input", "weight", "bias", "output")),
        *((name, c_int64) for name in ("num_tokens", "num_inputs", "num_outputs", "weight_stride")),
        *((name, c_int32) for name in ("weight_type", "type", "num_threads")),
    )


def linear(library: ctypes.CDLL, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns `tokens` (T, K) by the transpose of `weight` (N, K), plus `bias` (N), rounded once to the tokens' dtype.

    Args:
        tokens: of one of `TYPES`, contiguous.
        weight: of one of `TYPES`, each row's numbers next to each other.
        bias: contiguous, of the tokens' dtype.
    """
    output = tokens.new_empty(len(tokens), len(weight))
    call = _Linear(
        input=tokens.data_ptr(),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        output=output.data_ptr(),
        num_tokens=len(tokens),
        num_inputs=tokens.shape[1],
        num_outputs=len(weight),
        weight_stride=weight.stride(0),
        weight_type=TYPES[weight.dtype],
        type=TYPES[tokens.dtype],
        num_threads=torch.get_num_threads(),
    )
    library.headrace_linear(byref(call))
    return output
