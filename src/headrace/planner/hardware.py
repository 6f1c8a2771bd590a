"""What this machine was measured to do. Free of torch; `calibration` measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Rates of the device that computes.

    Attributes:
        device: as torch names it.
        matrix_rate: operations per second of a matrix product of 512 tokens, in the model's dtype.
        memory_rate: bytes per second at which weights are read by a product of one token.
        memory_bytes: what is free now.
    """

    device: str
    matrix_rate: float
    memory_rate: float
    memory_bytes: int
