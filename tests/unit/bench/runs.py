"""Runs that nobody timed."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.bench.measures import RowTimes, TimedRun


def row(*token_seconds: float, prompt: int = 10, arrived: float = 0.0, started: float | None = None) -> RowTimes:
    return RowTimes(
        num_prompt_tokens=prompt,
        arrived_seconds=arrived,
        started_seconds=arrived if started is None else started,
        token_seconds=token_seconds,
    )


def timed(rows: Sequence[RowTimes], seconds: float) -> TimedRun:
    return TimedRun(seconds=seconds, rows=tuple(rows))
