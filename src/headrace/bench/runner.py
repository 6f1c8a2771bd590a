"""Runs a workload on a model, some times to warm up and some times to measure."""

from __future__ import annotations

import time
from collections.abc import Callable

from headrace.bench.measures import RowTimes, TimedRun
from headrace.bench.workload import TokenIds, Workload
from headrace.engine.interface import LanguageModel
from headrace.units import format_seconds


def time_runs(
    model: LanguageModel,
    workload: Workload,
    token_ids: TokenIds,
    *,
    warmup: int,
    repeats: int,
    note: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[TimedRun]:
    """Returns `repeats` runs, after `warmup` others that do not count; each has prompts of its own.

    Args:
        token_ids: that prompts are made of.
        note: hears of each run when it ends.
        clock: seconds, for whole runs.

    Raises:
        OptionError: the rows do not fit the model's context.
        RequestError: a row could not be answered.
        SweepError: the model failed.
    """
    workload.check_room(model.max_model_len)
    runs = []
    for number in range(warmup + repeats):
        run = _time_run(model, workload, token_ids, number, clock)
        name = f"warm-up {number + 1} of {warmup}" if number < warmup else f"run {number - warmup + 1} of {repeats}"
        note(f"{name}: {format_seconds(run.seconds)}, {run.num_generated_tokens / run.seconds:,.1f} tokens/s")
        runs.append(run)
    return runs[warmup:]


def _time_run(
    model: LanguageModel, workload: Workload, token_ids: TokenIds, number: int, clock: Callable[[], float]
) -> TimedRun:
    requests = workload.requests(number, token_ids)
    start = clock()
    outputs = list(model.run(requests))
    seconds = clock() - start
    return TimedRun(seconds=seconds, rows=tuple(map(RowTimes.of, outputs)))
