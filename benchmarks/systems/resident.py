"""What every system of `cpu_resident` does around its engine. Needs the standard library alone: peers live elsewhere.

A process loads the model once, answers a short batch to warm up, and then one batch after another:

    {"model": folder, "options": {...}, "threads": 2, "rows": 8, "row_tokens": 544, "new_tokens": 32,
     "warm_up": prompts, "batches": [{"batch_size": 8, "prompts": prompts}, ...], "least_gain": 1.02}
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from benchmarks.processes import Figures

Prompts = list[list[int]]
WARM_UP_TOKENS = 4


class Arrivals:
    """The tokens of some rows, and when the first and the last of each came, on the clock of `time.perf_counter`."""

    def __init__(self, num_rows: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(num_rows)]
        self.first_seconds = [0.0] * num_rows
        self.last_seconds = [0.0] * num_rows

    def add(self, row: int, token: int, seconds: float | None = None) -> None:
        """Takes a row's next token, which came just now unless `seconds` says when."""
        seconds = time.perf_counter() if seconds is None else seconds
        if not self.tokens[row]:
            self.first_seconds[row] = seconds
        self.last_seconds[row] = seconds
        self.tokens[row].append(token)


Answer = Callable[[Prompts, int, int], Arrivals]
"""Continues prompts greedily, past any end token: (prompts, new tokens of each, rows at a time where it may choose)."""


def measure_batches(request: Figures, answer: Answer) -> list[Figures]:
    """Returns the figures of each batch, up to the first that fails or is too little faster than the best before it."""
    warm_up = request["warm_up"]
    answer(warm_up, WARM_UP_TOKENS, len(warm_up))
    runs: list[Figures] = []
    best = 0.0
    for batch in request["batches"]:
        try:
            run = _measure(answer, batch, request["new_tokens"])
        except (MemoryError, RuntimeError, ValueError) as error:
            runs.append({"batch_size": batch["batch_size"], "failed": f"{type(error).__name__}: {error}"[:400]})
            break
        runs.append(run)
        rate = run["generated_tokens_per_second"]
        if rate < request["least_gain"] * best:
            break
        best = max(best, rate)
    return runs


def _measure(answer: Answer, batch: Figures, new_tokens: int) -> Figures:
    prompts = batch["prompts"]
    start = time.perf_counter()
    arrivals = answer(prompts, new_tokens, batch["batch_size"])
    seconds = time.perf_counter() - start
    lengths = {len(tokens) for tokens in arrivals.tokens}
    if lengths != {new_tokens}:
        raise ValueError(f"answers of {sorted(lengths)} tokens; expected {new_tokens}")
    times = zip(arrivals.first_seconds, arrivals.last_seconds, strict=True)
    per_token = [(last - first) / (new_tokens - 1) for first, last in times]
    return {
        "batch_size": batch["batch_size"],
        "rows": len(prompts),
        "seconds": seconds,
        "generated_tokens_per_second": len(prompts) * new_tokens / seconds,
        "ttft_seconds": max(arrivals.first_seconds) - start,
        "tpot_seconds": sum(per_token) / len(per_token),
        "first_tokens": [tokens[0] for tokens in arrivals.tokens],
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """Returns the highest resident memory so far of this process or, where it is larger, of one that it started."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * max(resource.getrusage(kind).ru_maxrss for kind in kinds)


def versions(*packages: str) -> dict[str, str]:
    """Returns those of the packages that are installed in this environment."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
