"""Measures the rates that ideal times rest on, in about a second."""

from __future__ import annotations

import torch

from headrace.compression.packed_linear import product_with
from headrace.compression.weight_codecs import WeightCodec
from headrace.models.products import products
from headrace.planner.hardware import Hardware
from headrace.planner.timing import best_seconds
from headrace.storage.device_memory import device_available_bytes
from headrace.units import MIB

_TOKENS = 512
_WIDTH = 2048
_WEIGHT_BYTES = 256 * MIB
"""More than caches hold, so that a product of one token reads its weights from memory."""


def measure_matrix_rate(device: torch.device, dtype: torch.dtype, codec: WeightCodec | None = None) -> float:
    """Returns operations per second of products of 512 tokens, measured in a moment and in some 40 MiB of memory.

    Args:
        codec: that weights are packed with; None where they are of `dtype`.
    """
    with torch.inference_mode(), products(dtype, device):
        weight = torch.randn(_WIDTH, _WIDTH, device=device).to(dtype)
        multiply = product_with(weight, codec)
        tokens = torch.randn(_TOKENS, _WIDTH, device=device).to(dtype)
        seconds = best_seconds(device, lambda: multiply(tokens))
    return 2 * _TOKENS * weight.numel() / seconds


def calibrate(device: torch.device, dtype: torch.dtype) -> Hardware:
    """Times products of 512 tokens and of one token with weights of 2048 x 8192; the best of three rounds.

    The best, since ideal times are to be lower bounds and other work on the machine only ever adds to a round.
    """
    with torch.inference_mode(), products(dtype, device):
        first = torch.randn(4 * _WIDTH, _WIDTH, device=device).to(dtype)
        weights = [first.clone() for _ in range(_WEIGHT_BYTES // first.nbytes)]
        many = torch.randn(_TOKENS, _WIDTH, dtype=dtype, device=device)
        one = many[:1]
        large = best_seconds(device, lambda: torch.nn.functional.linear(many, weights[0]))
        small = best_seconds(device, lambda: [torch.nn.functional.linear(one, weight) for weight in weights])
    num_bytes = sum(weight.nbytes for weight in weights)
    return Hardware(
        device=str(device),
        matrix_rate=2 * _TOKENS * weights[0].numel() / large,
        memory_rate=num_bytes / small,
        memory_bytes=device_available_bytes(device),
    )
