"""Which parts of a model stay in memory and which are streamed, when memory holds only some. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What this machine was measured to do.

    Attributes:
        disk: bytes per second read from the model's disk.
        matrix: operations per second of matrix products of many tokens in the model's dtype.
    """

    disk: float
    matrix: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What the model and its typical rows need.

    Attributes:
        part_bytes: of every part that may stay or be streamed, in the order of a sweep.
        row_bytes: KV of one typical row.
        max_rows: that may run at a time.
        operations_per_token: in matrix products.
        tokens_per_row: of a row in a sweep, on average: more than one where prompts come in between.
    """

    part_bytes: Sequence[int]
    row_bytes: int
    max_rows: int
    operations_per_token: float
    tokens_per_row: float = 2.0


def resident_parts(demand: Demand, rates: Rates, num_bytes: int) -> frozenset[int]:
    """Divides `num_bytes` between weights that stay and KV so that the most rows advance per second.

    A sweep takes as long as the slower of reading the streamed parts and computing.
    Every resident byte spares reading; every byte of KV lets more rows share what is read.
    """
    all_bytes = sum(demand.part_bytes)
    best, best_worth = frozenset[int](), (0.0, 0, 0)
    for count in range(len(demand.part_bytes) + 1):
        parts = spread(len(demand.part_bytes), count)
        resident = sum(demand.part_bytes[index] for index in parts)
        rows = min(demand.max_rows, (num_bytes - resident) // max(1, demand.row_bytes))
        if rows < 1:
            break
        reading = (all_bytes - resident) / rates.disk
        computing = rows * demand.tokens_per_row * demand.operations_per_token / rates.matrix
        # Of equals the one with more rows, which matrix products like, then the one that leaves the disk to others.
        worth = (float(f"{rows / max(reading, computing):.4g}"), rows, count)
        if worth > best_worth:
            best, best_worth = parts, worth
    return best


def spread(num_parts: int, count: int) -> frozenset[int]:
    """Returns `count` of `num_parts` places, evenly apart, so that reading goes on while resident parts compute."""
    return frozenset((2 * index + 1) * num_parts // (2 * count) for index in range(count))
