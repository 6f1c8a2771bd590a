"""What happens when in one sweep: the one generator that executor, serial oracle, simulator and tracer follow.

A model is a list of points in the order in which a micro-batch reaches them. A micro-batch waits at a point until it is
resumed there, and then runs up to the next one:

    embedding | layer 0 · attention 0 · experts 0 | layer 1 · attention 1 · experts 1 | ... | head

The bars enclose a *stage*: one set of weights, brought before the stage's first point and dropped after its last.
Experts may be brought by themselves: which ones a micro-batch needs is known only when it waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

PointKind = Literal["embedding", "layer", "attention", "experts", "head"]


@dataclass(frozen=True, slots=True)
class Point:
    """A place where a micro-batch waits for bytes: for weights, or for KV (attention) or experts inside a layer.

    Attributes:
        kind: which module is about to run.
        layer: index of the layer; of the part, for a head that is brought in parts; 0 for the embedding.
    """

    kind: PointKind
    layer: int = 0

    @property
    def has_weights(self) -> bool:
        """Whether a stage's weights are brought for this point."""
        return self.kind in ("embedding", "layer", "head")


@dataclass(frozen=True, slots=True)
class Bring:
    """The weights of `point`'s stage are needed from here on."""

    point: Point


@dataclass(frozen=True, slots=True)
class Resume:
    """Micro-batch number `micro_batch`, which waits at `point`, runs to its next point or to its end."""

    micro_batch: int
    point: Point


@dataclass(frozen=True, slots=True)
class BringKV:
    """The KV that micro-batch number `micro_batch` reads at `point`, an attention, is needed from here on."""

    micro_batch: int
    point: Point


@dataclass(frozen=True, slots=True)
class StoreKV:
    """That KV, with what the micro-batch has added to it, may go home."""

    micro_batch: int
    point: Point


@dataclass(frozen=True, slots=True)
class BringExperts:
    """The experts that micro-batch number `micro_batch`, which waits at `point`, routes to are needed from here on."""

    micro_batch: int
    point: Point


@dataclass(frozen=True, slots=True)
class DropExperts:
    """The experts of `point` are not used again in this sweep, or not until the next `BringExperts`."""

    point: Point


@dataclass(frozen=True, slots=True)
class Drop:
    """The weights of `point`'s stage are not used again in this sweep, or not until the next `Bring`."""

    point: Point


Step = Bring | BringKV | BringExperts | Resume | StoreKV | DropExperts | Drop


def sweep_steps(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
    """Yields the steps of a zig-zag sweep: weights are brought once and serve every micro-batch before they go."""
    for stage in stages(points):
        yield Bring(stage[0])
        for micro_batch in range(num_micro_batches):
            yield from _through(stage, micro_batch)
        yield from _end(stage)


def serial_steps(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
    """Yields the steps of the plain oracle: one micro-batch after another, each bringing all weights for itself."""
    for micro_batch in range(num_micro_batches):
        for stage in stages(points):
            yield Bring(stage[0])
            yield from _through(stage, micro_batch)
            yield from _end(stage)


def _through(stage: Sequence[Point], micro_batch: int) -> Iterator[Step]:
    """One micro-batch from end to end of a stage: its queries do not wait for those of others to be made."""
    for point in stage:
        if point.kind == "attention":
            yield BringKV(micro_batch, point)
            yield Resume(micro_batch, point)
            yield StoreKV(micro_batch, point)
        elif point.kind == "experts":
            yield BringExperts(micro_batch, point)
            yield Resume(micro_batch, point)
        else:
            yield Resume(micro_batch, point)


def _end(stage: Sequence[Point]) -> Iterator[Step]:
    yield from (DropExperts(point) for point in stage if point.kind == "experts")
    yield Drop(stage[0])


def stages(points: Sequence[Point]) -> list[tuple[Point, ...]]:
    """Returns `points` cut before every point that has weights of its own."""
    assert not points or points[0].has_weights, f"{points[0]} has no weights to run on"
    starts = [index for index, point in enumerate(points) if point.has_weights]
    return [tuple(points[start:stop]) for start, stop in pairwise([*starts, len(points)])]
