"""Weights that are rewritten for products of few tokens: the layout of `interleaved_weights.h`, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.types import TYPES

INTERLEAVED_OUTPUTS = 64
"""`headrace::INTERLEAVED_OUTPUTS`: outputs whose numbers of an input lie next to each other."""
_WORD_BYTES = 4


def can_be_interleaved(weight: Tensor) -> bool:
    """Whether `interleave` takes a weight."""
    if weight.dtype not in TYPES:
        return False
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
