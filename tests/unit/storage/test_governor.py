"""When sweeps have to become smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from headrace.errors import BudgetError
from headrace.storage.budget import SPENDABLE, Budget
from headrace.storage.governor import PRESSURE, TOLERANCE, Governor


def governor(*readings: int) -> Governor:
    """Watches a budget of 1,000 bytes; every look at the process finds the next reading."""
    looks: Iterator[int] = iter(readings)
    measure: Callable[[], int] = lambda: next(looks)  # noqa: E731
    return Governor(budget=Budget(tier="host", limit_bytes=1000, option="--memory"), measure=measure)


def test_use_as_planned_is_no_pressure() -> None:
    assert not governor(int(1000 * SPENDABLE)).pressed()
    assert not governor(int(1000 * PRESSURE)).pressed()


def test_memory_that_can_be_given_back_is_no_pressure() -> None:
    assert not governor(1100, 980).pressed()
    assert not governor(1100, 1090, 980).pressed()


def test_freed_memory_is_given_back_only_where_use_is_above_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    released = []
    monkeypatch.setattr("headrace.storage.governor.release_freed_memory", lambda: released.append(True))
    governor(int(1000 * PRESSURE)).relieve()
    assert not released
    governor(int(1000 * PRESSURE) + 1).relieve()
    assert released == [True]


def test_more_than_planned_that_stays_is_pressure() -> None:
    assert governor(1100, 1090, 1000).pressed()


def test_pressure_begins_above_the_plan_and_below_the_limit() -> None:
    assert SPENDABLE < PRESSURE < 1 < TOLERANCE


def test_use_beyond_the_tolerance_that_nothing_helps_against_is_an_error() -> None:
    governor(int(1000 * TOLERANCE)).check()
    with pytest.raises(BudgetError, match=r"the process uses 1\.1 KiB of host memory, above --memory 1000 B"):
        governor(1100).check()
