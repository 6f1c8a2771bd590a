"""Whatever the model and the micro-batches: points in order, on weights that are there, and none left over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.schedule.steps import Bring, Drop, Point, Resume, Step, serial_steps, sweep_steps

Schedule = Callable[[Sequence[Point], int], Iterator[Step]]
BOTH = pytest.mark.parametrize("schedule", [sweep_steps, serial_steps])


@st.composite
def models(draw: st.DrawFn) -> list[Point]:
    """Points of a model: an embedding, layers with or without attention and experts, a head."""
    points = [Point("embedding")]
    for layer in range(draw(st.integers(0, 6))):
        points.append(Point("layer", layer))
        points += [Point("attention", layer)] * draw(st.integers(0, 2))
        points += [Point("experts", layer)] * draw(st.integers(0, 1))
    return [*points, Point("head")]


@BOTH
@given(points=models(), num_micro_batches=st.integers(1, 5))
def test_every_micro_batch_visits_every_point_in_order(
    schedule: Schedule, points: list[Point], num_micro_batches: int
) -> None:
    visited: list[list[Point]] = [[] for _ in range(num_micro_batches)]
    for step in schedule(points, num_micro_batches):
        if isinstance(step, Resume):
            visited[step.micro_batch].append(step.point)
    assert visited == [points] * num_micro_batches


@BOTH
@given(points=models(), num_micro_batches=st.integers(1, 5))
def test_weights_are_there_when_used_and_everything_brought_is_dropped(
    schedule: Schedule, points: list[Point], num_micro_batches: int
) -> None:
    present: set[Point] = set()
    for step in schedule(points, num_micro_batches):
        match step:
            case Bring(point):
                assert point.has_weights and point not in present
                present.add(point)
            case Resume(_, point):
                assert weights_of(point) in present
            case Drop(point):
                present.remove(point)
    assert not present


@given(points=models(), num_micro_batches=st.integers(1, 5))
def test_a_sweep_brings_all_weights_once(points: list[Point], num_micro_batches: int) -> None:
    brought = [step.point for step in sweep_steps(points, num_micro_batches) if isinstance(step, Bring)]
    assert brought == [point for point in points if point.has_weights]


def weights_of(point: Point) -> Point:
    """Returns the point whose weights `point` runs on."""
    return point if point.has_weights else Point("layer", point.layer)
