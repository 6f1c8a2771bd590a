"""Micro-batches are resumed in any order, wait anywhere and fail anywhere: tokens stay, and nothing is left behind."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from headrace import SamplingParams
from headrace.attention.grouped import GroupedAttention
from headrace.attention.ragged import KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule
from headrace.engine.requests import GenerationRequest
from headrace.errors import SweepError
from headrace.executor import executor as executor_module
from headrace.executor.contexts import ContextBuilder
from headrace.executor.executor import Sampled, Schedule
from headrace.models.coroutine import Coroutine
from headrace.models.layers import find_layers
from headrace.models.micro_batch import MicroBatchContext
from headrace.models.takeover import EngineModel
from headrace.schedule.steps import Point, PointKind, Resume, Step, sweep_steps
from headrace.scheduler.sweep import Chunk, MicroBatch
from tests.parity.harness import (
    ALL_KINDS,
    Row,
    Shape,
    engine_of,
    executor_of,
    generated,
    greedy,
    make_prompt,
    make_rig,
    tiny_engine_model,
)
from tests.tiny_configs import TINY_CONFIGS
from tests.unit.executor.orders import RandomOrder, Regrouped, falling_behind, last_first

HARD = ("gemma3_text", "deepseek_v3", "qwen3_next", "mamba2")
FAMILIES = [pytest.param(name, marks=[] if name in HARD else [pytest.mark.slow]) for name in sorted(TINY_CONFIGS)]
ROWS = [Row(prompt=make_prompt(length, seed=11), num_new=5, arrival=length % 3) for length in (1, 9, 20, 33, 12)]
SHAPE = Shape(block_tokens=4, sweep_tokens=29, num_micro_batches=3)


def expected(name: str, rows: Sequence[Row] = ROWS) -> list[list[int]]:
    return [generated(name, row.prompt, row.num_new) for row in rows for _ in range(row.num_samples)]


# --- any order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_micro_batches_are_resumed_in_any_order(name: str) -> None:
    draw = random.Random(name)
    rig = make_rig(tiny_engine_model(name), replace(SHAPE, schedule=RandomOrder(draw), shares_prefixes=False))
    rig.executor = Regrouped(executor_of(rig), draw)
    assert rig.run(ROWS) == expected(name)


@pytest.mark.parametrize("schedule", [last_first, falling_behind])
@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_a_micro_batch_may_be_far_ahead_of_the_others(name: str, schedule: Schedule) -> None:
    rig = make_rig(tiny_engine_model(name), replace(SHAPE, schedule=schedule, shares_prefixes=False))
    rig.executor = Regrouped(executor_of(rig), random.Random(1))
    assert rig.run(ROWS) == expected(name)


@pytest.mark.parametrize(
    "waits", [(), ("embedding",), ("layer",), ("attention", "head"), ("experts",), ("layer", "experts")], ids=str
)
def test_micro_batches_wait_only_where_they_are_told_to(waits: tuple[PointKind, ...]) -> None:
    seen: set[PointKind] = set()

    def watched(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
        for point in points:
            seen.add(point.kind)
            yield from (Resume(micro_batch, point) for micro_batch in range(num_micro_batches))

    rig = make_rig(tiny_engine_model("mixtral"), replace(SHAPE, schedule=watched, waits=frozenset(waits)))
    assert rig.run(ROWS[:2]) == expected("mixtral", ROWS[:2])
    assert seen == set(waits)


def test_a_schedule_that_forgets_a_micro_batch_is_an_error() -> None:
    def forgetful(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
        yield from (Resume(0, point) for point in points)

    rig = make_rig(tiny_engine_model("llama"), replace(SHAPE, schedule=forgetful))
    with pytest.raises(SweepError):
        rig.run(ROWS)


# --- failures -------------------------------------------------------------------------------------------------------


class InjectedError(Exception):
    """What the tests let a forward fail with."""


class Fault:
    """Fails at the `countdown`-th micro-batch that runs at a point of kind `kind`; disarmed by `countdown` 0."""

    def __init__(self, error: type[BaseException] = InjectedError) -> None:
        self.kind: PointKind = "head"
        self.countdown = 0
        self.error = error

    def at(self, kind: PointKind) -> None:
        if kind == self.kind and self.countdown:
            self.countdown -= 1
            if not self.countdown:
                raise self.error(f"injected at {kind}")

    def attention(self) -> GroupedAttention:
        fault = self

        class Failing(GroupedAttention):
            def attend(self, query: Tensor, pages: KVPages, layout: RaggedLayout, rule: AttentionRule) -> Tensor:
                attended = super().attend(query, pages, layout, rule)
                fault.at("attention")  # the new keys and values are in the pages
                return attended

        return Failing()

    @contextmanager
    def inside(self, model: EngineModel) -> Iterator[None]:
        """Puts the fault behind the model's own modules."""
        module = model.module
        stand_ins: list[tuple[PointKind, nn.Module]] = [
            ("embedding", module.get_input_embeddings()),
            ("head", module.get_output_embeddings()),
            *(("layer", layer) for layer in find_layers(module).layers),
        ]
        real: list[tuple[PointKind, nn.Module]] = [(kind, vars(stand_in)["real"]) for kind, stand_in in stand_ins]
        layers = [layer for kind, layer in real if kind == "layer"]
        real += [("experts", each) for layer in layers for each in layer.modules() if "headrace_layer" in vars(each)]
        hooks = [each.register_forward_hook(lambda *_, kind=kind: self.at(kind)) for kind, each in real]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def kinds_of(name: str) -> list[PointKind]:
    return sorted({point.kind for point in tiny_engine_model(name).table.points()})


SHARING = [
    Row(prompt=make_prompt(24, seed=5), num_new=4, num_samples=2),
    Row(prompt=make_prompt(24, seed=5)[:15] + make_prompt(9, seed=6), num_new=5),
    Row(prompt=make_prompt(3, seed=5), num_new=9),
    Row(prompt=make_prompt(24, seed=5) + make_prompt(9, seed=6), num_new=5),
    Row(prompt=make_prompt(31, seed=8), num_new=4),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_go_on_as_if_nothing_had_happened_when_every_sweep_fails_first(name: str) -> None:
    model, draw, fault = tiny_engine_model(name), random.Random(name), Fault()
    rig = make_rig(model, replace(SHAPE, attention=fault.attention))
    engine = engine_of(rig, model)
    num_failed = 0
    with fault.inside(model):
        tickets = [
            engine.add(
                GenerationRequest(
                    request_id=index,
                    prompt_token_ids=row.prompt,
                    params=SamplingParams(temperature=0, max_tokens=row.num_new, n=row.num_samples),
                )
            )
            for index, row in enumerate(SHARING)
        ]
        while len(engine.finished) < len(tickets):
            for _ in range(2):
                fault.kind, fault.countdown = draw.choice(kinds_of(name)), draw.randrange(1, 4)
                try:
                    engine.step()
                except SweepError as error:
                    num_failed += 1
                    assert "injected" in str(error)
                rig.cache.check_integrity()
            fault.countdown = 0
            engine.step()
            rig.cache.check_integrity()
    assert num_failed > 4
    outputs = [output for ticket in tickets for output in engine.finished[ticket].outputs]
    assert [list(output.token_ids) for output in outputs] == expected(name, SHARING)
    assert all(pool.num_available == pool.num_blocks for pool in rig.cache.pools)


@pytest.fixture
def coroutines(monkeypatch: pytest.MonkeyPatch) -> list[Coroutine[MicroBatchContext, Tensor]]:
    """All coroutines that executors start."""
    started: list[Coroutine[MicroBatchContext, Tensor]] = []

    class Recorded(Coroutine[MicroBatchContext, Tensor]):
        def __init__(self, context: MicroBatchContext, forward: Callable[[MicroBatchContext], Tensor]) -> None:
            started.append(self)
            super().__init__(context, forward)

    monkeypatch.setattr(executor_module, "Coroutine", Recorded)
    return started


def assert_nothing_is_left(
    coroutines: list[Coroutine[MicroBatchContext, Tensor]], threads: set[threading.Thread]
) -> None:
    assert coroutines, "no coroutine was started"
    assert all(coroutine.waits_at is None for coroutine in coroutines)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert set(threading.enumerate()) == threads
    frames = [weakref.ref(vars(coroutine)["_greenlet"]) for coroutine in coroutines]
    contexts = [weakref.ref(coroutine.context.token_ids) for coroutine in coroutines]
    coroutines.clear()
    gc.collect()
    assert not any(frame() for frame in frames), "a frame outlives its sweep"
    assert not any(context() is not None for context in contexts), "a context outlives its sweep"


@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [(name, kind, InjectedError) for name in ("mixtral", "qwen3_next", "mamba2") for kind in kinds_of(name)]
    + [("qwen3_next", "layer", KeyboardInterrupt), ("mixtral", "experts", torch.OutOfMemoryError)],
)
def test_a_failure_at_any_point_unwinds_every_micro_batch(
    name: str, kind: PointKind, error: type[BaseException], coroutines: list[Coroutine[MicroBatchContext, Tensor]]
) -> None:
    model, fault = tiny_engine_model(name), Fault(error)
    threads = set(threading.enumerate())
    rig = make_rig(model, replace(SHAPE, attention=fault.attention))
    fault.kind, fault.countdown = kind, 2  # the second micro-batch, between one that is ahead and one behind
    raised = KeyboardInterrupt if error is KeyboardInterrupt else SweepError
    with fault.inside(model), pytest.raises(raised, match=f"injected at {kind}"):
        rig.run(ROWS)
    assert_nothing_is_left(coroutines, threads)


def test_a_failure_before_the_first_stop_unwinds_those_that_wait(
    coroutines: list[Coroutine[MicroBatchContext, Tensor]],
) -> None:
    model, fault = tiny_engine_model("llama"), Fault()
    threads = set(threading.enumerate())
    rig = make_rig(model, replace(SHAPE, waits=frozenset({"layer"})))
    fault.kind, fault.countdown = "embedding", 2
    with fault.inside(model), pytest.raises(SweepError, match="injected at embedding"):
        rig.run(ROWS)
    assert len(coroutines) == 2
    assert_nothing_is_left(coroutines, threads)


def test_a_failing_schedule_starts_no_micro_batch(
    coroutines: list[Coroutine[MicroBatchContext, Tensor]],
) -> None:
    def breaking(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
        for number, step in enumerate(sweep_steps(points, num_micro_batches)):
            if number == 20:
                raise InjectedError("injected into the schedule")
            yield step

    threads = set(threading.enumerate())
    rig = make_rig(tiny_engine_model("llama"), replace(SHAPE, schedule=breaking))
    with pytest.raises(SweepError, match="InjectedError: injected into the schedule"):
        rig.run(ROWS)
    assert not coroutines and set(threading.enumerate()) == threads


def test_a_failing_sampler_fails_the_sweep(coroutines: list[Coroutine[MicroBatchContext, Tensor]]) -> None:
    def breaking(logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
        raise InjectedError("injected into the sampler")

    threads = set(threading.enumerate())
    with pytest.raises(SweepError, match="injected into the sampler"):
        make_rig(tiny_engine_model("llama"), SHAPE).run(ROWS, breaking)
    assert_nothing_is_left(coroutines, threads)


def test_a_micro_batch_that_cannot_be_built_fails_the_sweep() -> None:
    class Breaking(ContextBuilder):
        def build(self, micro_batch: MicroBatch, waits: frozenset[Point]) -> MicroBatchContext:
            raise InjectedError("injected into the contexts")

    rig = make_rig(tiny_engine_model("llama"), SHAPE)
    executor_of(rig).contexts.__class__ = Breaking
    with pytest.raises(SweepError, match="injected into the contexts"):
        rig.run(ROWS)
    assert not torch.is_inference_mode_enabled()


def test_a_whole_run_leaves_nothing_behind(coroutines: list[Coroutine[MicroBatchContext, Tensor]]) -> None:
    threads = set(threading.enumerate())
    make_rig(tiny_engine_model("qwen3_next"), SHAPE).run(ROWS, greedy)
    assert_nothing_is_left(coroutines, threads)


def test_all_kinds_of_points_occur() -> None:
    assert {kind for name in HARD for kind in kinds_of(name)} == ALL_KINDS
