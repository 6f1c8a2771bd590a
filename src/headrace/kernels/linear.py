"""Calls `headrace_linear`: products of tokens and weights on a CPU, summed in fp32 in the order of the inputs."""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from headrace.kernels.types import TYPES

_INT4 = 4


class _Linear(Structure):
    """`headrace::Linear` of linear.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("input", "weight", "bias", "output")),
        *((name, c_int64) for name in ("num_tokens", "num_inputs", "num_outputs", "weight_stride")),
        *((name, c_int32) for name in ("weight_type", "type", "group_inputs", "num_threads")),
    )


def linear(library: ctypes.CDLL, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns `tokens` (T, K) by the transpose of `weight` (N, K), plus `bias` (N), rounded once to the tokens' dtype.

    Args:
        tokens: of one of `TYPES`, contiguous.
        weight: of one of `TYPES`, each row's numbers next to each other.
        bias: contiguous, of the tokens' dtype.
    """
    return _multiply(
        library, tokens, weight, bias, len(weight), weight_type=TYPES[weight.dtype], stride=weight.stride(0)
    )


def int4_linear(
    library: ctypes.CDLL, tokens: Tensor, packed: Tensor, bias: Tensor | None, num_outputs: int, group_size: int
) -> Tensor:
    """Does the same with a weight that is `packed` in 4 bits as `packing.h` says, in groups of `group_size` inputs."""
    return _multiply(library, tokens, packed, bias, num_outputs, weight_type=_INT4, group_size=group_size)


def _multiply(
    library: ctypes.CDLL,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_outputs: int,
    *,
    weight_type: int,
    stride: int = 0,
    group_size: int = 0,
) -> Tensor:
    output = tokens.new_empty(len(tokens), num_outputs)
    call = _Linear(
        input=tokens.data_ptr(),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        output=output.data_ptr(),
        num_tokens=len(tokens),
        num_inputs=tokens.shape[1],
        num_outputs=num_outputs,
        weight_stride=stride,
        weight_type=weight_type,
        type=TYPES[tokens.dtype],
        group_inputs=group_size,
        num_threads=torch.get_num_threads(),
    )
    library.headrace_linear(byref(call))
    return output
