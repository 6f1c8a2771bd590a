"""Calls `headrace_linear`: products of tokens and weights on a CPU, summed in fp32 in the order of the inputs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from headrace.kernels.types import MOST_WEIGHTS, TYPES

INTERLEAVED_OUTPUTS = 64
"""`headrace::INTERLEAVED_OUTPUTS` of interleaved_weights.h."""
_WORD_BYTES = 4


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
        *((name, c_int32) for name in ("num_weights", "is_interleaved", "weight_type", "type", "num_threads")),
    )


def linear(
    library: ctypes.CDLL,
    tokens: Tensor,
    weights: Sequence[tuple[Tensor, Tensor | None]],
    *,
    are_interleaved: bool = False,
) -> list[Tensor]:
    """Returns, for each weight (N, K) and bias (N) or None, `tokens` (T, K) by its transpose, plus the bias.

    Results are rounded once to the tokens' dtype.

    Args:
        tokens: of one of `TYPES`, contiguous.
        weights: at most `MOST_WEIGHTS`, all of one of `TYPES`, each row's numbers next to each other; biases
            contiguous, of the tokens' dtype.
        are_interleaved: weights are what `interleave` returns.
    """
    num_tokens, num_inputs = tokens.shape
    call = _Linear(
        input=tokens.data_ptr(),
        num_tokens=num_tokens,
        num_inputs=num_inputs,
        num_weights=len(weights),
        is_interleaved=are_interleaved,
        weight_type=TYPES[weights[0][0].dtype],
        type=TYPES[tokens.dtype],
        num_threads=torch.get_num_threads(),
    )
    outputs = []
    for place, (weight, bias) in zip(call.weights, weights, strict=False):
        num_outputs = len(weight) * INTERLEAVED_OUTPUTS if are_interleaved else len(weight)
        output = tokens.new_empty(num_tokens, num_outputs)
        place.weight, place.stride = weight.data_ptr(), weight.stride(0)
        place.output, place.num_outputs = output.data_ptr(), num_outputs
        if bias is not None:
            place.bias = bias.data_ptr()
        outputs.append(output)
    library.headrace_linear(byref(call))
    return outputs


def can_be_interleaved(weight: Tensor) -> bool:
    """Whether `interleave` takes a weight."""
    num_outputs, num_inputs = weight.shape
    return num_outputs % INTERLEAVED_OUTPUTS == 0 and num_inputs % _inputs_per_word(weight) == 0


def interleave(weight: Tensor) -> Tensor:
    """Rewrites a weight (N, K), contiguous, where it lies, so that no product has to turn it.

    Returns:
        The same memory as (N / 64, K / P, 64, P), P inputs in 32 bits.
    """
    together = _inputs_per_word(weight)
    interleaved = weight.view(-1, weight.shape[1] // together, INTERLEAVED_OUTPUTS, together)
    words = weight.view(-1, INTERLEAVED_OUTPUTS, weight.shape[1]).view(torch.int32)
    for rows, of_inputs in zip(words, interleaved.view(torch.int32).squeeze(-1), strict=True):
        of_inputs.copy_(rows.t().clone(memory_format=torch.contiguous_format))
    return interleaved


def interleaved_rows(interleaved: Tensor, outputs: Tensor) -> Tensor:
    """Returns rows (R, K), of `outputs` (R), of the weight that became `interleaved`."""
    words = interleaved.view(torch.int32).squeeze(-1)
    return words[outputs // INTERLEAVED_OUTPUTS, :, outputs % INTERLEAVED_OUTPUTS].view(interleaved.dtype)


def _inputs_per_word(weight: Tensor) -> int:
    return _WORD_BYTES // weight.itemsize
