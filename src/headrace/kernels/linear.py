"""Calls `headrace_linear`: products of tokens and weights on a CPU, summed in fp32 in the order of the inputs."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import Structure, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from headrace.kernels.calls import make
from headrace.kernels.interleaving import INTERLEAVED_OUTPUTS
from headrace.kernels.types import MOST_WEIGHTS, TYPES

_ROWS, _COLUMNS, _INTERLEAVED = range(3)
"""`headrace::WeightLayout` of linear.h."""


class _PlainWeight(Structure):
    """`headrace::PlainWeight` of linear.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("weight", "bias", "output")),
        *((name, c_int64) for name in ("num_outputs", "stride")),
    )


class _Linear(Structure):
    """`headrace::Linear` of linear.h."""

    _fields_ = (
        ("input", c_void_p),
        ("weights", _PlainWeight * MOST_WEIGHTS),
        *((name, c_int64) for name in ("num_tokens", "num_inputs")),
        *((name, c_int32) for name in ("num_weights", "layout", "weight_type", "type", "num_threads")),
    )


def linear(
    library: ctypes.CDLL,
    input: Tensor,
    weights: Sequence[tuple[Tensor, Tensor | None]],
    *,
    are_interleaved: bool = False,
) -> list[Tensor]:
    """Returns, for each weight (N, K) and bias (N) or None, `input` (..., K) by its transpose, plus the bias.

    Results (..., N) are rounded once to the dtype of the input.

    Args:
        input: of one of `TYPES`.
        weights: at most `MOST_WEIGHTS`, all of one of `TYPES`, the numbers of all their rows or of all their columns
            next to each other; biases contiguous, of the input's dtype.
        are_interleaved: weights are what `interleave` returns.
    """
    tokens = input.contiguous()
    *leading, num_inputs = tokens.shape
    layout = _INTERLEAVED if are_interleaved else _ROWS if weights[0][0].stride(1) == 1 else _COLUMNS
    call = _Linear(
        input=tokens.data_ptr(),
        num_tokens=math.prod(leading),
        num_inputs=num_inputs,
        num_weights=len(weights),
        layout=layout,
        weight_type=TYPES[weights[0][0].dtype],
        type=TYPES[tokens.dtype],
        num_threads=torch.get_num_threads(),
    )
    outputs = []
    for place, (weight, bias) in zip(call.weights, weights, strict=False):
        # len() of a tensor takes four times as long as a look at its shape.
        num_outputs = weight.shape[0] * (INTERLEAVED_OUTPUTS if are_interleaved else 1)
        output = tokens.new_empty(*leading, num_outputs)
        place.weight, place.stride = weight.data_ptr(), weight.stride(1 if layout == _COLUMNS else 0)
        place.output, place.num_outputs = output.data_ptr(), num_outputs
        if bias is not None:
            place.bias = bias.data_ptr()
        outputs.append(output)
    make(library.headrace_linear, call)
    return outputs
