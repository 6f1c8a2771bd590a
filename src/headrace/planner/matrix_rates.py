"""How fast weights are multiplied, by how many tokens share them, and how fast memory is read and copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from headrace.models.products import products
from headrace.planner.calibration_record import MatrixRate
from headrace.planner.timing import best_seconds
from headrace.units import MIB

NUM_TOKENS = (1, 8, 32, 128, 512, 2048)
_WEIGHT_BYTES = 64 * MIB
"""A larger weight is cut to fewer rows."""
_COPIES_BYTES, _MOST_COPIES = 96 * MIB, 12
"""Few tokens take their weights from memory, as in a sweep: they are multiplied with copies that no cache holds."""
_FEW_TOKENS = 32
_PRODUCT_SECONDS = 0.05
"""A product that would take longer is cut to fewer rows of the weight, which changes its rate little."""
_LEAST_ROWS = 256
_ENOUGH_SECONDS = 0.08
_MEMORY_BYTES = 256 * MIB


def measure_matrices(
    device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, int]]
) -> Iterator[MatrixRate]:
    """Yields the rate of products with weights of each shape (rows, columns), for 1 to 2048 tokens.

    Takes up to 200 MiB, and some tenths of a second for each.
    """
    for rows, columns in shapes:
        with torch.inference_mode(), products(dtype, device):
            yield from _measure_shape(device, dtype, rows, columns)


def _measure_shape(device: torch.device, dtype: torch.dtype, rows: int, columns: int) -> Iterator[MatrixRate]:
    rows_held = min(rows, max(_LEAST_ROWS, _WEIGHT_BYTES // (columns * dtype.itemsize)))
    weight = _noise(rows_held, columns, device, dtype)
    copies = [weight, *(weight.clone() for _ in range(min(_MOST_COPIES, _COPIES_BYTES // weight.nbytes) - 1))]
    rate = float("inf")
    for num_tokens in NUM_TOKENS:
        tokens = _noise(num_tokens, columns, device, dtype)
        weights = copies if num_tokens <= _FEW_TOKENS else [weight]
        wanted_rows = int(_PRODUCT_SECONDS * min(rate, 1e18) / (2 * num_tokens * columns))
        if len(weights) == 1 and wanted_rows < rows_held:
            weights = [weight[: max(_LEAST_ROWS, wanted_rows)]]
        rate = _product_rate(device, tokens, weights)
        yield MatrixRate(
            rows=rows,
            columns=columns,
            dtype=str(dtype).removeprefix("torch."),
            num_tokens=num_tokens,
            operations_per_second=rate,
        )


def _product_rate(device: torch.device, tokens: Tensor, weights: Sequence[Tensor]) -> float:
    def run() -> None:
        for weight in weights:
            torch.nn.functional.linear(tokens, weight)

    seconds = best_seconds(device, run, enough_seconds=_ENOUGH_SECONDS)
    return 2 * len(tokens) * sum(weight.numel() for weight in weights) / seconds


def measure_memory(device: torch.device) -> tuple[float, float]:
    """Returns the bytes per second at which memory is read, and at which it is copied."""
    with torch.inference_mode():
        source = torch.ones(_MEMORY_BYTES // 4, device=device)
        target = torch.zeros_like(source)
        reading = best_seconds(device, source.sum, enough_seconds=_ENOUGH_SECONDS)
        copying = best_seconds(device, lambda: target.copy_(source), enough_seconds=_ENOUGH_SECONDS)
    return source.nbytes / reading, source.nbytes / copying


def _noise(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Random numbers; a few rows of them again and again, since they take longer to draw than to multiply."""
    few = torch.randn(min(rows, _LEAST_ROWS), columns, device=device).to(dtype)
    return few.repeat(-(-rows // len(few)), 1)[:rows].contiguous()
