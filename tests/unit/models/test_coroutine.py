"""A coroutine runs up to its points, hands over results and errors, and leaves no frame when it is cancelled."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest

from headrace.models.coroutine import Coroutine, current_context, suspend
from headrace.schedule.steps import Point

FIRST, SECOND = Point("layer", 0), Point("layer", 1)


class Trail:
    """What a forward did, in order; also a context to find it by."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.steps: list[str] = []


def forward(trail: Trail) -> str:
    trail.steps.append("begun")
    suspend(FIRST)
    trail.steps.append("first")
    suspend(SECOND)
    trail.steps.append("second")
    return f"result of {trail.name}"


def test_a_forward_runs_from_point_to_point() -> None:
    coroutine = Coroutine(Trail("a"), forward)
    assert (coroutine.waits_at, coroutine.context.steps) == (FIRST, ["begun"])
    coroutine.resume()
    assert (coroutine.waits_at, coroutine.context.steps) == (SECOND, ["begun", "first"])
    coroutine.resume()
    assert (coroutine.waits_at, coroutine.result) == (None, "result of a")


def test_a_forward_without_points_ends_at_once() -> None:
    coroutine = Coroutine(3, lambda number: number + 1)
    assert (coroutine.waits_at, coroutine.result) == (None, 4)


def test_coroutines_run_between_each_others_points() -> None:
    coroutines = [Coroutine(Trail(name), forward) for name in "abc"]
    for index in (2, 0, 2, 1, 0, 1):
        coroutines[index].resume()
    assert [coroutine.result for coroutine in coroutines] == ["result of a", "result of b", "result of c"]


def test_code_inside_finds_its_own_context() -> None:
    def look(trail: Trail) -> bool:
        before = current_context() is trail
        suspend(FIRST)
        return before and current_context() is trail

    coroutines = [Coroutine(Trail(name), look) for name in "ab"]
    for coroutine in reversed(coroutines):
        coroutine.resume()
    assert [coroutine.result for coroutine in coroutines] == [True, True]


def test_outside_of_a_coroutine_there_is_no_context() -> None:
    with pytest.raises(AssertionError, match="only inside a coroutine"):
        current_context()


@pytest.mark.parametrize("num_resumes", [0, 1, 2])
def test_what_a_forward_raises_reaches_whoever_runs_it(num_resumes: int) -> None:
    def failing(trail: Trail) -> None:
        for number in range(3):
            if number == num_resumes:
                raise ValueError(f"broken after {number}")
            suspend(Point("layer", number))

    if not num_resumes:
        with pytest.raises(ValueError, match="broken after 0"):
            Coroutine(Trail(), failing)
        return
    coroutine = Coroutine(Trail(), failing)
    for _ in range(num_resumes - 1):
        coroutine.resume()
    with pytest.raises(ValueError, match=f"broken after {num_resumes}"):
        coroutine.resume()
    assert coroutine.waits_at is None
    coroutine.cancel()


def guarded(trail: Trail) -> None:
    try:
        suspend(FIRST)
    except Exception:
        trail.steps.append("swallowed")
    finally:
        trail.steps.append("unwound")


def test_cancelling_unwinds_the_frames_past_handlers_of_errors() -> None:
    trail = Trail()
    coroutine = Coroutine(trail, guarded)
    coroutine.cancel()
    assert (coroutine.waits_at, trail.steps) == (None, ["unwound"])
    coroutine.cancel()
    assert trail.steps == ["unwound"]


def test_a_forward_that_survives_its_cancellation_is_our_bug() -> None:
    def stubborn(_: Trail) -> None:
        try:
            suspend(FIRST)
        finally:
            suspend(SECOND)

    coroutine = Coroutine(Trail(), stubborn)
    with pytest.raises(AssertionError, match="survive"):
        coroutine.cancel()
    coroutine.cancel()  # the second one reaches it where it hides


@pytest.mark.parametrize("end", [Coroutine.cancel, Coroutine.resume], ids=["cancelled", "ended"])
def test_nothing_holds_a_context_after_the_end(end: Callable[[Coroutine[Trail, None]], None]) -> None:
    coroutine = Coroutine(Trail(), guarded)
    end(coroutine)
    context = weakref.ref(coroutine.context)
    del coroutine
    gc.collect()
    assert context() is None


def test_a_coroutine_may_be_resumed_by_another_one() -> None:
    inner = Coroutine(Trail("inner"), forward)

    def outer(_: Trail) -> str:
        suspend(FIRST)
        inner.resume()
        inner.resume()
        return inner.result

    coroutine = Coroutine(Trail("outer"), outer)
    coroutine.resume()
    assert coroutine.result == "result of inner"
