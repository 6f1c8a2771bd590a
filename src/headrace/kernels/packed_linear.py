"""Calls `headrace_int8_linear` and `headrace_int4_linear`: products of tokens in 8 bits and packed weights on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels.types import MOST_WEIGHTS, TYPES


class PackedWeight(NamedTuple):
    """Attributes:
    packed: a weight (N, K) as `packing.h` says, contiguous.
    bias: (N), contiguous, of the tokens' dtype; or None.
    num_outputs: N.
    """

    packed: Tensor
    bias: Tensor | None
    num_outputs: int


class _PackedWeight(Structure):
    """`headrace::PackedWeight` of packed_linear.h."""

    _fields_ = (*((name, c_void_p) for name in ("weight", "bias", "output")), ("num_outputs", c_int64))


class _PackedLinear(Structure):
    """`headrace::PackedLinear` of packed_linear.h."""

    _fields_ = (
        ("input", c_void_p),
        ("weights", _PackedWeight * MOST_WEIGHTS),
        *((name, c_int64) for name in ("num_tokens", "num_inputs")),
        *((name, c_int32) for name in ("num_weights", "type", "num_threads", "group_inputs")),
        ("outliers", c_float),
    )


def int8_linear(
    library: ctypes.CDLL, tokens: Tensor, weights: Sequence[PackedWeight], outliers: float | None = None
) -> list[Tensor]:
    """Returns, for each weight (N, K), `tokens` (T, K) by its transpose, plus its bias (N).

    Tokens are rounded to 8 bits, once for all weights.

    Args:
        tokens: of one of `TYPES`, contiguous.
        weights: in 8 bits, at most `MOST_WEIGHTS`.
        outliers: numbers of at least this magnitude are not rounded.
    """
    call, outputs = _call(tokens, weights)
    call.outliers = outliers or 0.0
    library.headrace_int8_linear(byref(call))
    return outputs


def int4_linear(library: ctypes.CDLL, tokens: Tensor, weights: Sequence[PackedWeight], group_size: int) -> list[Tensor]:
    """Does the same with weights in 4 bits; weights and tokens are rounded group by group of `group_size` inputs."""
    call, outputs = _call(tokens, weights)
    call.group_inputs = group_size
    library.headrace_int4_linear(byref(call))
    return outputs


def _call(tokens: Tensor, weights: Sequence[PackedWeight]) -> tuple[_PackedLinear, list[Tensor]]:
    """Returns what to call with, and the tensors (T, N) that are written."""
    num_tokens, num_inputs = tokens.shape
    call = _PackedLinear(
        input=tokens.data_ptr(),
        num_tokens=num_tokens,
        num_inputs=num_inputs,
        num_weights=len(weights),
        type=TYPES[tokens.dtype],
        num_threads=torch.get_num_threads(),
    )
    outputs = []
    for place, (packed, bias, num_outputs) in zip(call.weights, weights, strict=False):
        output = tokens.new_empty(num_tokens, num_outputs)
        place.weight, place.output, place.num_outputs = packed.data_ptr(), output.data_ptr(), num_outputs
        if bias is not None:
            place.bias = bias.data_ptr()
        outputs.append(output)
    return call, outputs
