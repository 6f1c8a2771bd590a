"""Ways to run a sweep that no schedule of ours would take, but any order must do: the rows are independent."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from headrace.executor.executor import Executor, Sampled, Sampler
from headrace.schedule.steps import Point, Resume, Step
from headrace.scheduler.sweep import Chunk, MicroBatch, Sweep

NUM_MICRO_BATCHES = 3


@dataclass
class RandomOrder:
    """Resumes any micro-batch that has not ended; what another one has done does not matter."""

    draw: random.Random

    def __call__(self, points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
        left = {micro_batch: list(points) for micro_batch in range(num_micro_batches)}
        while left := {micro_batch: own for micro_batch, own in left.items() if own}:
            micro_batch = self.draw.choice(sorted(left))
            yield Resume(micro_batch, left[micro_batch].pop(0))


def last_first(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
    """Runs the last micro-batch to its end, then the one before it."""
    for micro_batch in reversed(range(num_micro_batches)):
        yield from (Resume(micro_batch, point) for point in points)


def falling_behind(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
    """Each micro-batch is one point ahead of the one before it, in the order of a pipeline run backwards."""
    for step in range(len(points) + num_micro_batches - 1):
        for micro_batch in reversed(range(num_micro_batches)):
            index = step - (num_micro_batches - 1 - micro_batch)
            if 0 <= index < len(points):
                yield Resume(micro_batch, points[index])


@dataclass
class Regrouped:
    """Runs sweeps whose sequences are dealt anew to micro-batches, so that none is in two of them."""

    executor: Executor
    draw: random.Random

    def run(self, sweep: Sweep, sampler: Sampler) -> Sampled:
        chunks = [chunk for micro_batch in sweep.micro_batches for chunk in micro_batch.chunks]
        hands: dict[int, list[Chunk]] = {}
        hand_of: dict[int, int] = {}
        for chunk in chunks:
            hand = hand_of.setdefault(chunk.sequence_id, self.draw.randrange(NUM_MICRO_BATCHES))
            hands.setdefault(hand, []).append(chunk)
        micro_batches = tuple(MicroBatch(chunks=tuple(hand)) for hand in hands.values())
        return self.executor.run(replace(sweep, micro_batches=micro_batches), sampler)
