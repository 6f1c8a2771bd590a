"""A cache that is too small for its rows: their KV goes to the tier below and comes back, or is computed again."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.engine.engine import Engine
from headrace.engine.moving import KVMoving
from headrace.engine.requests import GenerationRequest
from headrace.errors import SweepError
from headrace.planner.preemption import SweepSpeed
from headrace.schedule.steps import Point, Step
from headrace.storage.budget import Budget
from headrace.storage.governor import Governor
from tests.few_blocks import leave_few_blocks
from tests.parity.harness import generated, make_prompt
from tests.tiny_configs import VOCAB_SIZE
from tests.tiny_models import save_tiny, write_tokenizer

NAME = "llama"
PROMPTS = [make_prompt(length, seed) for seed, length in enumerate((9, 12, 20, 16, 25, 5))]
NUM_NEW = 60
NUM_BLOCKS = 5
"""Of 32 tokens: every row begins with one, and the longest ends with three."""

MakeLLM = Callable[..., LLM]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(NAME, folder)
    write_tokenizer(folder, VOCAB_SIZE)
    return folder


@pytest.fixture
def crowded(model: Path, tmp_path: Path) -> Iterator[MakeLLM]:
    """Makes an LLM whose cache holds few blocks, and which reckons that computing takes for ever."""
    made: list[LLM] = []

    def make(num_blocks: int = NUM_BLOCKS, **options: object) -> LLM:
        llm = LLM(model, **{"dtype": "float32", "disk": tmp_path / "below", **options})  # type: ignore[arg-type]
        made.append(llm)
        leave_few_blocks(llm, num_blocks)._speed = SweepSpeed()
        return llm

    yield make
    for llm in made:
        llm.close()


def engine_of(llm: LLM) -> Engine:
    assert llm._engine is not None
    return llm._engine


def assert_rows_are_right(llm: LLM) -> None:
    """Runs all prompts and compares them with transformers; afterwards nothing is in use, here or below."""
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=NUM_NEW))
    assert [list(output.outputs[0].token_ids) for output in outputs] == [
        generated(NAME, prompt, NUM_NEW) for prompt in PROMPTS
    ]
    scheduler = engine_of(llm).scheduler
    scheduler._cache.check_integrity()
    assert scheduler.num_preemptions > 0
    assert not scheduler._cache._parked._parked


def add_all(engine: Engine) -> list[int]:
    """Lets all prompts wait, and returns their tickets."""
    params = SamplingParams(temperature=0, max_tokens=NUM_NEW)
    return [
        engine.add(GenerationRequest(request_id=number, prompt_token_ids=prompt, params=params))
        for number, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("device", ["cpu", "simulated:2GiB,8GB/s"])
def test_rows_that_were_moved_are_generated_as_by_transformers(device: str, crowded: MakeLLM, tmp_path: Path) -> None:
    llm = crowded(device=device)
    assert not (tmp_path / "below").exists()
    assert_rows_are_right(llm)
    scheduler = engine_of(llm).scheduler
    assert scheduler.num_moved_down == scheduler.num_preemptions
    assert (tmp_path / "below").exists()
    assert not list(tmp_path.glob("below/*"))


def test_under_pressure_that_small_sweeps_do_not_end_rows_leave_one_by_one(crowded: MakeLLM) -> None:
    llm = crowded(num_blocks=60, max_num_batched_tokens=16, max_num_seqs=len(PROMPTS))
    engine = engine_of(llm)
    pressed = Budget(tier="host", limit_bytes=1000, option="--memory")
    engine.governor = Governor(budget=pressed, measure=lambda: 1020)
    given_back: list[int] = []
    engine.give_back = lambda blocks: given_back.append(len(blocks[0]))
    assert_rows_are_right(llm)
    scheduler = engine.scheduler
    assert scheduler.num_moved_down == scheduler.num_preemptions >= 3
    assert scheduler.limits.max_num_seqs <= len(PROMPTS) - 3
    assert len(given_back) >= 3 and all(given_back)


def test_rows_are_computed_again_where_that_is_faster(crowded: MakeLLM, tmp_path: Path) -> None:
    llm = crowded()
    moves = engine_of(llm).executor.moves
    assert isinstance(moves, KVMoving)
    moves._speed = SweepSpeed(tokens_per_second=1e12)
    assert_rows_are_right(llm)
    assert engine_of(llm).scheduler.num_moved_down == 0


def test_a_row_that_is_cancelled_while_its_kv_is_below_leaves_nothing_there(crowded: MakeLLM) -> None:
    llm = crowded()
    engine = engine_of(llm)
    tickets = add_all(engine)
    while not engine.scheduler._cache._parked._parked:
        engine.step()
    for ticket in tickets:
        engine.cancel(ticket)
    engine.scheduler._cache.check_integrity()
    assert not engine.scheduler._cache._parked._parked


Move = Callable[[int, Sequence[memoryview], int], int]


def fail_from(call: int, code: int, move: Move) -> Move:
    """Returns a `preadv` or `pwritev` that fails from its `call`th call on."""
    num_calls = 0

    def failing(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls >= call:
            raise OSError(code, os.strerror(code))
        return move(descriptor, buffers, offset)

    return failing


@pytest.mark.parametrize("name", ["pwritev", "preadv"])
@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_rows_are_computed_again_when_the_disk_fails(
    name: str, call: int, code: int, crowded: MakeLLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llm = crowded()
    monkeypatch.setattr(os, name, fail_from(call, code, getattr(os, name)))
    with caplog.at_level(logging.WARNING):
        assert_rows_are_right(llm)
    (record,) = caplog.records
    assert os.strerror(code) in record.message and "computed again" in record.message
    assert not engine_of(llm).scheduler._cache._parked.has_room([{0: 0}]), "a disk that failed is asked again"


def test_rows_are_computed_again_where_the_disk_has_no_room(
    crowded: MakeLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llm = crowded(disk=f"{tmp_path}:4KiB")
    with caplog.at_level(logging.WARNING):
        assert_rows_are_right(llm)
    (record,) = caplog.records
    assert "too little room" in record.message and str(tmp_path) in record.message
    assert engine_of(llm).scheduler.num_moved_down == 0


def test_sweeps_that_fail_after_their_moves_leave_every_row_as_it_was(crowded: MakeLLM) -> None:
    llm = crowded()
    engine = engine_of(llm)
    real, num_sweeps, num_failed = engine.executor.schedule, 0, 0

    def fail_often(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
        nonlocal num_sweeps
        num_sweeps += 1
        if engine.scheduler.num_preemptions and num_sweeps % 3:
            raise RuntimeError("a fault of no importance")
        return real(points, num_micro_batches)

    engine.executor = replace(engine.executor, schedule=fail_often)
    tickets = add_all(engine)
    while len(engine.finished) < len(tickets):
        try:
            engine.step()
        except SweepError:
            num_failed += 1
        engine.scheduler._cache.check_integrity()
    assert num_failed > 10
    assert [list(engine.finished.pop(ticket).outputs[0].token_ids) for ticket in tickets] == [
        generated(NAME, prompt, NUM_NEW) for prompt in PROMPTS
    ]
