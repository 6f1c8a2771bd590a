"""How long something takes on the device that computes, when nothing disturbs it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

_REPEATS = 3


def best_seconds(device: torch.device, run: Callable[[], object], *, enough_seconds: float = math.inf) -> float:
    """Runs `run` once untimed and then up to three times; returns the shortest time.

    Other work on the machine only ever adds to a round.

    Args:
        enough_seconds: no further round begins once so much was spent on them.
    """
    run()  # allocations and kernel selection
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < enough_seconds:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the clock must see the end of the work
        times.append(time.perf_counter() - start)
    return min(times)
