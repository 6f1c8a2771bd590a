"""How long something takes."""

from __future__ import annotations

import time

import pytest
import torch

from headrace.planner.timing import best_seconds

CPU = torch.device("cpu")


def test_the_best_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert best_seconds(CPU, lambda: calls.append(1)) == 2.0
    assert len(calls) == 4  # one more, that is not timed


def test_no_round_begins_once_enough_time_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert best_seconds(CPU, lambda: None, enough_seconds=6) == 2.0
