"""A request that nobody wants any more leaves: others go on unchanged, and its blocks are free."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from headrace import LLM, SamplingParams
from headrace.engine.engine import Engine
from headrace.engine.requests import GenerationRequest
from tests.parity.harness import Rig, Shape, engine_of, generated, make_prompt, make_rig, tiny_engine_model
from tests.tiny_configs import VOCAB_SIZE
from tests.tiny_models import save_tiny

COMMON = make_prompt(17, seed=21)
PROMPTS = [COMMON + make_prompt(4), COMMON, make_prompt(30, seed=22), COMMON + make_prompt(9), make_prompt(2)]
NUM_NEW = 9


def request(index: int, num_samples: int = 1) -> GenerationRequest:
    params = SamplingParams(temperature=0, max_tokens=NUM_NEW, n=num_samples)
    return GenerationRequest(request_id=index, prompt_token_ids=PROMPTS[index], params=params)


def assert_all_is_free(rig: Rig) -> None:
    rig.cache.check_integrity()
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (0, 0)
    assert all(pool.num_available == pool.num_blocks for pool in rig.cache.pools)


@pytest.mark.parametrize("sweeps_before", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "name",
    ["qwen3_next", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "deepseek_v3", "mamba2"))],
)
def test_other_rows_go_on_as_if_the_cancelled_had_never_been(name: str, sweeps_before: int) -> None:
    model = tiny_engine_model(name)
    rig = make_rig(model, Shape(block_tokens=4, sweep_tokens=25, num_micro_batches=2))
    engine = engine_of(rig, model)
    tickets = [engine.add(request(index, num_samples=1 + index % 2)) for index in range(len(PROMPTS))]
    for _ in range(sweeps_before):
        engine.step()
    for index in (0, 3):
        engine.cancel(tickets[index])
        rig.cache.check_integrity()
    while len(engine.finished) < 3:
        engine.step()
    for index in (1, 2, 4):
        outputs = engine.finished[tickets[index]].outputs
        assert [list(output.token_ids) for output in outputs] == [generated(name, PROMPTS[index], NUM_NEW)] * (
            1 + index % 2
        )
    assert_all_is_free(rig)


def test_a_cancelled_request_leaves_the_queue_and_no_output() -> None:
    model = tiny_engine_model("llama")
    rig = make_rig(model, Shape(max_num_seqs=1))
    engine = engine_of(rig, model)
    running, waiting = engine.add(request(0)), engine.add(request(1))
    engine.step()
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (1, 1)
    engine.cancel(waiting)
    engine.cancel(running)
    engine.cancel(running)
    engine.step()
    assert not engine.finished
    assert_all_is_free(rig)


def test_samples_that_never_fit_give_one_error() -> None:
    model = tiny_engine_model("llama")
    rig = make_rig(model, Shape(block_tokens=4, scarce=True))
    engine = engine_of(rig, model)
    prompt = make_prompt(100)
    assert rig.cache.capacity_tokens < len(prompt)
    ticket = engine.add(
        GenerationRequest(request_id=0, prompt_token_ids=prompt, params=SamplingParams(temperature=0, n=3))
    )
    engine.step()
    error = engine.finished[ticket].error
    assert error is not None and error.code == "context_length_exceeded"
    assert_all_is_free(rig)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_next")
    save_tiny("qwen3_next", folder)
    Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB_SIZE)}, unk_token="w0")).save(
        str(folder / "tokenizer.json")
    )
    return folder


def engine_inside(llm: LLM) -> Engine:
    engine = llm._engine
    assert engine is not None
    return engine


def test_a_closed_stream_leaves_the_model_free_for_others(saved: Path) -> None:
    with LLM(saved, max_num_batched_tokens=32, max_model_len=128) as llm:
        stream = llm.stream(PROMPTS[2], SamplingParams(temperature=0, max_tokens=50))
        pieces = [next(stream), next(stream)]
        scheduler = engine_inside(llm).scheduler
        assert scheduler.num_running == 1
        stream.close()
        assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=NUM_NEW))
    answers = [generated("qwen3_next", prompt, NUM_NEW) for prompt in PROMPTS]
    assert [list(output.outputs[0].token_ids) for output in outputs] == answers
    assert [piece.token_ids[0] for piece in pieces] == answers[2][:2]


def test_a_closed_run_cancels_what_is_unfinished(saved: Path) -> None:
    with LLM(saved, max_num_batched_tokens=32, max_model_len=128) as llm:
        scheduler = engine_inside(llm).scheduler
        run = llm.run(request(index) for index in range(len(PROMPTS)))
        first = next(run)
        run.close()
        assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
        assert not engine_inside(llm).finished
        again = list(llm.run(request(index) for index in range(len(PROMPTS))))
    assert list(first.outputs[0].token_ids) == generated("qwen3_next", PROMPTS[first.request_id], NUM_NEW)
    assert {output.request_id: list(output.outputs[0].token_ids) for output in again} == {
        index: generated("qwen3_next", prompt, NUM_NEW) for index, prompt in enumerate(PROMPTS)
    }
