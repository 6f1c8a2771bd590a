"""Calls `headrace_int8_linear` and `headrace_int4_linear`: products of tokens in 8 bits and packed weights on a CPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from headrace.kernels.calls import make
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
    library: ctypes.CDLL, input: Tensor, weights: Sequence[PackedWeight], outliers: float | None = None
) -> list[Tensor]:
    """Returns, for each weight (N, K), `input` (..., K) by its transpose, plus its bias (N): each (..., N).

    The input is rounded to 8 bits, token by token, once for all weights.

    Args:
        input: of one of `TYPES`.
        weights: in 8 bits, at most `MOST_WEIGHTS`.
        outliers: numbers of at least this magnitude are not rounded.
    """
    return _products(library.headrace_int8_linear, input, weights, outliers=outliers or 0.0)


def int4_linear(library: ctypes.CDLL, input: Tensor, weights: Sequence[PackedWeight], group_size: int) -> list[Tensor]:
    """Does the same with weights in 4 bits; weights and input are rounded group by group of `group_size` inputs."""
    return _products(library.headrace_int4_linear, input, weights, group_inputs=group_size)


def _products(
    function: Callable[[object], None], input: Tensor, weights: Sequence[PackedWeight], **of_codec: float
) -> list[Tensor]:
    tokens = input.contiguous()
    *leading, num_inputs = tokens.shape
    call = _PackedLinear(
        input=tokens.data_ptr(),
        num_tokens=math.prod(leading),
        num_inputs=num_inputs,
        num_weights=len(weights),
        type=TYPES[tokens.dtype],
        num_threads=torch.get_num_threads(),
        **of_codec,
    )
    outputs = []
    for place, (packed, bias, num_outputs) in zip(call.weights, weights, strict=False):
        output = tokens.new_empty(*leading, num_outputs)
        place.weight, place.output, place.num_outputs = packed.data_ptr(), output.data_ptr(), num_outputs
        if bias is not None:
            place.bias = bias.data_ptr()
        outputs.append(output)
    make(function, call)
    return outputs
