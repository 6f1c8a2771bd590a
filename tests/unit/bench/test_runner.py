"""Runs of a workload: some to warm up, some that count."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headrace.bench.runner import time_runs
from headrace.bench.workload import Workload
from headrace.errors import OptionError, SweepError
from headrace.testing import EchoLLM

IDS = np.arange(1, 200)
WORKLOAD = Workload(prompt_tokens=20, max_tokens=6, num_rows=3)


def test_runs_that_warm_up_do_not_count() -> None:
    notes: list[str] = []
    ticks = itertools.count()
    runs = time_runs(
        EchoLLM(), WORKLOAD, IDS, warmup=1, repeats=2, note=notes.append, clock=lambda: float(2 ** next(ticks))
    )
    assert [run.seconds for run in runs] == [4.0, 16.0]  # 1 and 2, 4 and 8, 16 and 32
    assert notes == [
        "warm-up 1 of 1: 1.0 s, 18.0 tokens/s",
        "run 1 of 2: 4.0 s, 4.5 tokens/s",
        "run 2 of 2: 16.0 s, 1.1 tokens/s",
    ]


def test_every_row_of_a_run_has_its_times() -> None:
    (run,) = time_runs(EchoLLM(max_num_seqs=2), WORKLOAD, IDS, warmup=0, repeats=1)
    assert (run.num_prompt_tokens, run.num_generated_tokens, run.most_rows_at_once) == (60, 18, 2)
    assert [row.arrived_seconds for row in run.rows] == pytest.approx([0.0, 0.0, 0.006])


def test_rows_that_do_not_fit_are_refused_before_anything_runs() -> None:
    def never(step: int) -> None:
        raise AssertionError("it ran")

    with pytest.raises(OptionError, match="need a context of 26 tokens"):
        time_runs(EchoLLM(max_model_len=25, on_step=never), WORKLOAD, IDS, warmup=0, repeats=1)


def test_a_model_that_fails_ends_the_measurement() -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise SweepError("the disk is gone")

    with pytest.raises(SweepError, match="the disk is gone"):
        time_runs(EchoLLM(on_step=fail), WORKLOAD, IDS, warmup=1, repeats=1)
