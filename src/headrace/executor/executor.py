"""Runs one sweep: the driver of its micro-batches' coroutines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.errors import SweepError
from headrace.executor.activations import Activations, ActivationsStay
from headrace.executor.block_moves import BlockMoves, NoBlockMoves
from headrace.executor.contexts import ContextBuilder
from headrace.executor.expert_stream import Experts, ResidentExperts
from headrace.executor.kv_stream import KVElsewhere, NoKVElsewhere
from headrace.executor.weight_stream import ResidentWeights, Weights
from headrace.models.coroutine import Coroutine
from headrace.models.micro_batch import MicroBatchContext
from headrace.models.takeover import EngineModel
from headrace.sampling.tokens import SampledToken
from headrace.schedule.steps import (
    Bring,
    BringExperts,
    BringKV,
    Drop,
    DropExperts,
    Point,
    Resume,
    Step,
    StoreKV,
    sweep_steps,
)
from headrace.scheduler.sweep import Chunk, Sweep
from headrace.trace import NoTrace, Trace

Sampled = Mapping[int, Sequence[SampledToken]]
"""The tokens that follow, by sequence."""
Sampler = Callable[[Tensor, Sequence[Chunk]], Sampled]
"""(logits (R, vocabulary), the chunks whose they are) -> the tokens that follow, by sequence."""
Schedule = Callable[[Sequence[Point], int], Iterator[Step]]
"""(points of the model, number of micro-batches) -> the steps of a sweep."""


def nothing() -> None:
    """Relieves no memory."""


def token_ids(sampled: Sampled) -> dict[int, list[int]]:
    """Returns the ids of the tokens that follow, by sequence."""
    return {sequence: [token.token_id for token in tokens] for sequence, tokens in sampled.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Executor:
    """Follows a schedule's steps.

    A sweep that fails is unwound in all of its micro-batches. It has written only blocks and slots that no committed
    table names, so that every row is as it was.

    Attributes:
        points: where the micro-batches wait, in order.
        products: entered while forwards run; see `headrace.models.products`.
        relieve: called between layers; gives back memory that is not needed.
    """

    model: EngineModel
    points: Sequence[Point]
    contexts: ContextBuilder
    weights: Weights = field(default_factory=ResidentWeights)
    experts: Experts = field(default_factory=ResidentExperts)
    kv: KVElsewhere = field(default_factory=NoKVElsewhere)
    activations: Activations = field(default_factory=ActivationsStay)
    moves: BlockMoves = field(default_factory=NoBlockMoves)
    schedule: Schedule = field(default=sweep_steps)
    trace: Trace = field(default_factory=NoTrace)
    products: AbstractContextManager[object] = field(default_factory=nullcontext)
    relieve: Callable[[], None] = field(default=nothing)

    def run(self, sweep: Sweep, sampler: Sampler) -> Sampled:
        """Returns the tokens that follow each sampling chunk, by sequence.

        Raises:
            SweepError: any micro-batch failed, for the reason that the message names.
            BlockMoveError: KV could not be moved; the sweep is to be abandoned, and made again without moves.
        """
        self.moves.make(sweep)
        try:
            with (
                torch.inference_mode(),
                self.products,
                self.trace.span("sweeps", "sweep", number=sweep.sweep_id, tokens=sweep.num_tokens),
            ):
                self.contexts.copy_blocks(sweep.copies)
                waits = frozenset(self.points)
                contexts = [self.contexts.build(micro_batch, waits) for micro_batch in sweep.micro_batches]
                steps = list(self.schedule(self.points, len(contexts)))
                self.kv.begin(sweep, [step for step in steps if isinstance(step, BringKV)])
                logits = self._drive(contexts, steps)
                self.kv.end()
                with self.trace.span("sampling", "sample"):
                    return _sample(sweep, logits, sampler)
        except Exception as error:
            raise SweepError(f"sweep {sweep.sweep_id} failed: {type(error).__name__}: {error}") from error

    def _drive(self, contexts: Sequence[MicroBatchContext], steps: Sequence[Step]) -> list[Tensor]:
        """Runs the forwards of all micro-batches to their ends, in the order of the schedule."""
        coroutines: list[Coroutine[MicroBatchContext, Tensor]] = []
        try:
            coroutines.extend(Coroutine(context, self.model.forward) for context in contexts)
            self.weights.follow(self.points)
            self.experts.follow(self.points, sum(context.token_ids.shape[1] for context in contexts))
            turns = [step.micro_batch for step in steps if isinstance(step, Resume) and step.point.has_weights]
            self.activations.begin([context.token_ids.shape[1] for context in contexts], turns)
            for step in steps:
                with self.trace.span(*_label(step)):
                    self._follow(step, coroutines)
            return [coroutine.result for coroutine in coroutines]
        finally:
            for coroutine in coroutines:
                coroutine.cancel()
            self.activations.end()

    def _follow(self, step: Step, coroutines: Sequence[Coroutine[MicroBatchContext, Tensor]]) -> None:
        match step:
            case Bring(point):
                self.weights.bring(point)
            case BringKV(micro_batch, point):
                brought = self.kv.bring(step)
                if brought is not None:
                    coroutines[micro_batch].context.brought[point.layer] = brought
            case BringExperts(micro_batch, point):
                context = coroutines[micro_batch].context
                experts = self.experts.bring(point.layer, context.routing[point.layer])
                if experts is not None:
                    context.experts[point.layer] = experts
            case Resume(micro_batch, point):
                coroutine = coroutines[micro_batch]
                assert coroutine.waits_at == point, f"{step} found it at {coroutine.waits_at}"
                if point.has_weights:
                    self.activations.bring(micro_batch)
                coroutine.resume()
                if coroutine.waits_at is not None and coroutine.waits_at.has_weights:
                    self.activations.send(micro_batch, coroutine.context.kept())
            case StoreKV(micro_batch, point):
                coroutines[micro_batch].context.brought.pop(point.layer, None)
                self.kv.store(micro_batch, point.layer)
            case DropExperts(point):
                self.experts.drop(point.layer)
            case Drop(point):
                self.weights.drop(point)
                self.relieve()


def _label(step: Step) -> tuple[str, str]:
    """The track of a trace that a step belongs on, and what it is called there."""
    place = f"{step.point.kind} {step.point.layer}"
    match step:
        case Resume(micro_batch):
            return f"micro-batch {micro_batch}", place
        case BringKV(micro_batch) | StoreKV(micro_batch):
            return f"KV of micro-batch {micro_batch}", f"{type(step).__name__} {place}"
        case BringExperts(micro_batch):
            return "weights", f"{place} of micro-batch {micro_batch}"
        case Bring() | DropExperts() | Drop():
            return "weights", f"{type(step).__name__} {place}"


def _sample(sweep: Sweep, logits: Sequence[Tensor], sampler: Sampler) -> Sampled:
    sampled: dict[int, Sequence[SampledToken]] = {}
    for micro_batch, rows in zip(sweep.micro_batches, logits, strict=True):
        chunks = [chunk for chunk in micro_batch.chunks if chunk.num_logits]
        if chunks:
            sampled.update(sampler(rows, chunks))
    return sampled
