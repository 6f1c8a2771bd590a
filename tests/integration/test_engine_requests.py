"""Requests of every kind through one engine, on a small trained model."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace import LLM, GenerationRequest, SamplingParams
from headrace.engine.engine import Engine
from headrace.engine.outputs import RequestOutput
from headrace.errors import HeadraceError, RequestError, SweepError
from headrace.executor.executor import Sampled
from headrace.kv_cache.manager import KVCacheManager
from tests.tiny_models import save_tiny

ONCE = [1, 403, 407, 261, 378]
GREEDY = SamplingParams(temperature=0, max_tokens=24)
MAX_SEQS = 48


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    """A Llama of 260,000 parameters that tells stories; context 512, vocabulary 512."""
    return shared_data / "models" / "stories260k-hf"


@pytest.fixture(scope="module")
def llm(stories: Path) -> Iterator[LLM]:
    with LLM(stories, memory="2GiB", max_num_seqs=MAX_SEQS, max_num_batched_tokens=256) as llm:
        yield llm


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the engine is empty and its KV cache adds up."""
    yield
    if "llm" in request.fixturenames:
        assert_empty(request.getfixturevalue("llm"))


def engine_of(llm: LLM) -> Engine:
    assert llm._engine is not None
    return llm._engine


def assert_empty(llm: LLM) -> None:
    engine = engine_of(llm)
    assert (engine._running, engine._answers, engine.finished, engine._num_waiting_tokens) == ({}, {}, {}, 0)
    assert (engine.scheduler.num_waiting, engine.scheduler.num_running) == (0, 0)
    engine.scheduler._cache.check_integrity()


def tokens_of(output: RequestOutput, index: int = 0) -> tuple[int, ...]:
    assert output.error is None
    return output.outputs[index].token_ids


def request(number: int, prompt: Sequence[int] = ONCE, **params: object) -> GenerationRequest:
    return GenerationRequest(
        request_id=number,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(**params),  # type: ignore[arg-type]
    )


def random_prompts(number: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[1, *draw.integers(3, 512, draw.integers(1, longest)).tolist()] for _ in range(number)]


# --- what a request may ask for -----------------------------------------------------------------------------------


def test_without_max_tokens_an_answer_takes_the_rest_of_the_context(llm: LLM) -> None:
    (output,) = llm.generate([ONCE * 90], SamplingParams(temperature=0, ignore_eos=True))
    assert len(tokens_of(output)) == llm.max_model_len - 450
    assert output.outputs[0].finish_reason == "length"


def test_max_tokens_beyond_the_context_are_cut(llm: LLM) -> None:
    (output,) = llm.generate([ONCE * 100], SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True))
    assert len(tokens_of(output)) == llm.max_model_len - 500


def test_several_end_tokens_of_the_model_all_end_an_answer(stories: Path, llm: LLM, tmp_path: Path) -> None:
    alone = tokens_of(llm.generate(ONCE, GREEDY)[0])
    shutil.copytree(stories, tmp_path, dirs_exist_ok=True)
    ends = [alone[5], alone[9]]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, ends[1], ends[0]]}))
    with LLM(tmp_path, memory="1GiB", max_model_len=64, max_num_batched_tokens=32) as ending:
        (output,) = ending.generate(ONCE, GREEDY)
        (ignoring,) = ending.generate(ONCE, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
    first = min(alone.index(end) for end in ends)
    assert tokens_of(output) == alone[: first + 1]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)
    assert output.outputs[0].text == llm.tokenizer.decode([*ONCE, *alone[:first]])[len(llm.tokenizer.decode(ONCE)) :]
    assert tokens_of(ignoring) == alone


def test_sampling_defaults_come_from_the_model(stories: Path, llm: LLM, tmp_path: Path) -> None:
    shutil.copytree(stories, tmp_path, dirs_exist_ok=True)
    says = {"do_sample": True, "temperature": 0.8, "top_k": 7, "eos_token_id": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(says))
    with LLM(tmp_path, memory="1GiB", max_model_len=64, max_num_batched_tokens=32) as sampling:
        assert (sampling.defaults.do_sample, sampling.defaults.temperature, sampling.defaults.top_k) == (True, 0.8, 7)
        (by_default,) = sampling.generate(ONCE, SamplingParams(max_tokens=24, seed=5))
        (greedy,) = sampling.generate(ONCE, GREEDY)
    (asked,) = llm.generate(ONCE, SamplingParams(max_tokens=24, seed=5, temperature=0.8, top_k=7))
    assert tokens_of(by_default) == tokens_of(asked) != tokens_of(greedy)
    assert tokens_of(greedy) == tokens_of(llm.generate(ONCE, GREEDY)[0])


@pytest.mark.parametrize("stop", [" girl", "girl named", "tle g", "ly. She", "named Lily."])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(llm: LLM, stop: str) -> None:
    whole = llm.generate(ONCE, GREEDY)[0].outputs[0].text
    assert stop in whole
    (output,) = llm.generate(ONCE, SamplingParams(temperature=0, max_tokens=24, stop=["never there", stop]))
    answer = output.outputs[0]
    assert answer.text == whole[: whole.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert stop in llm.tokenizer.decode([*ONCE, *answer.token_ids])


@pytest.mark.parametrize("stop", [" girl", "girl named", "ly. She"])
def test_a_stream_never_shows_a_part_of_a_stop_string(llm: LLM, stop: str) -> None:
    whole = llm.generate(ONCE, GREEDY)[0].outputs[0].text
    pieces = list(llm.stream(ONCE, SamplingParams(temperature=0, max_tokens=24, stop=stop)))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]


def test_a_stop_token_ends_the_answer_and_is_named(llm: LLM) -> None:
    alone = tokens_of(llm.generate(ONCE, GREEDY)[0])
    (output,) = llm.generate(ONCE, SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[alone[7]]))
    assert tokens_of(output) == alone[: alone.index(alone[7]) + 1]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", alone[7])


def test_min_tokens_keeps_an_end_from_coming_early(llm: LLM) -> None:
    alone = tokens_of(llm.generate(ONCE, GREEDY)[0])
    params = SamplingParams(temperature=0, max_tokens=24, min_tokens=12, stop_token_ids=sorted(set(alone[:6])))
    answer = llm.generate(ONCE, params)[0].outputs[0]
    assert len(answer.token_ids) >= 13 or answer.finish_reason == "length"
    assert not set(answer.token_ids[:12]) & set(alone[:6])


def test_samples_of_one_request_differ_and_a_seed_repeats_them(llm: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.0, max_tokens=20, seed=11)
    (first,), (second,) = llm.generate(ONCE, params), llm.generate(ONCE, params)
    answers = [tokens_of(first, index) for index in range(4)]
    assert answers == [tokens_of(second, index) for index in range(4)]
    assert len(set(answers)) == 4
    assert [answer.index for answer in first.outputs] == [0, 1, 2, 3]
    (alone,) = llm.generate(ONCE, SamplingParams(temperature=1.0, max_tokens=20, seed=11))
    assert tokens_of(alone) == answers[0]


def test_requests_without_a_seed_differ_and_an_engine_of_the_same_seed_repeats_them(stories: Path, llm: LLM) -> None:
    requests = [request(number, temperature=1.0, max_tokens=20) for number in range(3)]
    here = {output.request_id: tokens_of(output) for output in llm.run(requests)}
    assert len(set(here.values())) == 3
    with LLM(stories, memory="1GiB", max_num_batched_tokens=32, max_model_len=64) as same:
        assert {output.request_id: tokens_of(output) for output in same.run(requests)} == here
    with LLM(stories, memory="1GiB", max_num_batched_tokens=32, max_model_len=64, seed=1) as other:
        assert {output.request_id: tokens_of(output) for output in other.run(requests)} != here


def test_logprobs_are_those_of_transformers(stories: Path, llm: LLM) -> None:
    (output,) = llm.generate(ONCE, SamplingParams(temperature=0.7, seed=3, max_tokens=16, logprobs=5))
    answer = output.outputs[0]
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([[*ONCE, *answer.token_ids]])).logits[0, len(ONCE) - 1 : -1]
    expected = logits.log_softmax(-1)
    assert answer.logprobs is not None
    for row, found in zip(expected, answer.logprobs, strict=True):
        assert found.logprob == pytest.approx(row[found.token_id].item(), abs=1e-4)
        assert found.rank == int((row > row[found.token_id]).sum()) + 1
        best = row.topk(5)
        assert [token for token, _ in found.top] == best.indices.tolist()
        assert [value for _, value in found.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert [found.token_id for found in answer.logprobs] == list(answer.token_ids)


# --- what runs beside changes nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_gets_the_same_tokens_alone_and_amid_others(llm: LLM, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=99, max_tokens=40, logprobs=0)
    (alone,) = llm.generate(ONCE, params)
    others = [
        request(number, prompt, temperature=1.0, max_tokens=7 + number)
        for number, prompt in enumerate(random_prompts(40))
    ]
    row = GenerationRequest(request_id=1000, prompt_token_ids=tuple(ONCE), params=params)
    outputs = {output.request_id: output for output in llm.run([*others[:20], row, *others[20:]])}
    assert tokens_of(outputs[1000]) == tokens_of(alone)
    # Products of other shapes are summed in another order, so that logits agree in their leading digits only.
    amid, by_itself = outputs[1000].outputs[0].logprobs, alone.outputs[0].logprobs
    assert amid is not None and by_itself is not None
    assert [entry.logprob for entry in amid] == pytest.approx([entry.logprob for entry in by_itself], abs=1e-4)


def test_two_streams_and_a_job_share_the_engine(llm: LLM) -> None:
    left = SamplingParams(temperature=0.9, seed=1, max_tokens=30)
    right = SamplingParams(temperature=0.9, seed=2, max_tokens=12)
    expected = [llm.generate(ONCE, params)[0].outputs[0] for params in (left, right)]
    streams = [llm.stream(ONCE, left), llm.stream(ONCE, right)]
    pieces: list[list[tuple[str, tuple[int, ...]]]] = [[], []]
    for _ in range(3):
        for stream, got in zip(streams, pieces, strict=True):
            piece = next(stream)
            got.append((piece.text, piece.token_ids))
    outputs = llm.generate(random_prompts(5), GREEDY)
    assert all(len(tokens_of(output)) > 0 for output in outputs)
    for stream, got in zip(streams, pieces, strict=True):
        got += [(piece.text, piece.token_ids) for piece in stream]
    for got, answer in zip(pieces, expected, strict=True):
        assert "".join(text for text, _ in got) == answer.text
        assert tuple(itertools.chain.from_iterable(tokens for _, tokens in got)) == answer.token_ids


def test_a_stream_of_several_samples_is_its_first_one(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=11, max_tokens=10)
    streamed = [token for piece in llm.stream(ONCE, params) for token in piece.token_ids]
    assert tuple(streamed) == tokens_of(llm.generate(ONCE, params)[0])


# --- what cannot be served ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "code"),
    [([], "empty_prompt"), ([5] * 512, "context_length_exceeded"), ([512], "invalid_value"), ([-1], "invalid_value")],
    ids=["empty", "as long as the context", "beyond the vocabulary", "negative"],
)
def test_a_prompt_that_cannot_be_served_is_refused_before_anything_runs(llm: LLM, prompt: list[int], code: str) -> None:
    for call in (lambda: llm.generate([ONCE, prompt], GREEDY), lambda: llm.stream(prompt, GREEDY)):
        with pytest.raises(RequestError) as refused:
            call()
        assert refused.value.code == code
    good, bad = request(1, max_tokens=3, temperature=0), request(2, prompt)
    outputs = {output.request_id: output for output in llm.run([bad, good])}
    assert outputs[2].error is not None and outputs[2].error.code == code and outputs[2].outputs == ()
    assert len(tokens_of(outputs[1])) == 3


def test_the_longest_prompt_that_fits_gets_one_token(llm: LLM) -> None:
    (output,) = llm.generate([[5] * 511], SamplingParams(temperature=0, ignore_eos=True))
    assert len(tokens_of(output)) == 1


def test_parameters_must_be_one_or_one_each(llm: LLM) -> None:
    with pytest.raises(RequestError, match="2 sampling parameters for 3 prompts"):
        llm.generate([ONCE] * 3, [GREEDY, GREEDY])
    assert llm.generate([]) == []
    each = llm.generate([ONCE, ONCE], [GREEDY, SamplingParams(temperature=0, max_tokens=2)])
    assert [len(tokens_of(output)) for output in each] == [24, 2]


def test_prompts_may_be_text_or_tokens_of_any_integer_type(llm: LLM) -> None:
    text = llm.generate("Once upon a time", GREEDY)
    assert [output.prompt for output in text] == ["Once upon a time"]
    for prompts in (ONCE, [ONCE], np.array(ONCE), ["Once upon a time"], (tuple(ONCE),)):
        assert tokens_of(llm.generate(prompts, GREEDY)[0]) == tokens_of(text[0])  # type: ignore[arg-type]


# --- the life of an engine ----------------------------------------------------------------------------------------


def test_closing_a_job_early_cancels_what_is_unfinished(llm: LLM) -> None:
    job = llm.run(request(number, max_tokens=3 + 20 * (number % 2)) for number in range(60))
    next(job)
    job.close()
    assert_empty(llm)


def test_closing_a_stream_early_cancels_it_even_before_it_began(llm: LLM) -> None:
    unused, used = llm.stream(ONCE, GREEDY), llm.stream(ONCE, GREEDY)
    next(used)
    used.close()
    unused.close()
    assert_empty(llm)


def test_a_long_job_is_pulled_no_further_ahead_than_the_window(llm: LLM) -> None:
    pulled = 0

    def requests() -> Iterator[GenerationRequest]:
        nonlocal pulled
        for number in range(600):
            pulled += 1
            yield request(number, [1 + number % 500], max_tokens=1 + number % 2, temperature=0)

    finished = 0
    for output in llm.run(requests()):
        assert output.error is None
        assert pulled - finished <= 2 * MAX_SEQS
        finished += 1
    assert finished == 600


def test_long_prompts_and_many_samples_fill_the_window_with_fewer_requests(llm: LLM) -> None:
    pulled = 0

    def requests(length: int, n: int) -> Iterator[GenerationRequest]:
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            yield request(number, [3] * length, max_tokens=2, n=n, temperature=1.0)

    for length, n, most in ((500, 1, 64 * 256 // 500 + 2), (5, 40, 4)):
        pulled = 0
        job = llm.run(requests(length, n))
        next(job)
        job.close()
        assert pulled <= most + MAX_SEQS // n


@pytest.mark.slow
def test_five_thousand_requests_are_pulled_lazily_and_all_answered(llm: LLM) -> None:
    seen: set[int] = set()
    job = llm.run(request(number, [1 + number % 500], max_tokens=1, temperature=0) for number in range(5000))
    for output in job:
        assert output.error is None
        seen.add(output.request_id)
    assert seen == set(range(5000))


def test_metrics_are_in_order(llm: LLM) -> None:
    outputs = llm.generate(random_prompts(3, seed=8), SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    for output in outputs:
        metrics = output.metrics
        assert metrics is not None and metrics.tpot_seconds is not None
        assert 0 <= metrics.queued_seconds <= metrics.ttft_seconds
        assert metrics.tpot_seconds > 0
        times = output.outputs[0].token_seconds
        assert len(times) == 5 and sorted(times) == list(times)
        assert times[0] - metrics.arrived_seconds == metrics.ttft_seconds
        assert (times[-1] - times[0]) / 4 == metrics.tpot_seconds
    assert len({tuple(output.outputs[0].token_seconds) for output in outputs}) == 1, "they were in the same sweeps"
    again = llm.generate([[77, 78] * 50], SamplingParams(temperature=0, max_tokens=1))[0].metrics
    once_more = llm.generate([[77, 78] * 50], SamplingParams(temperature=0, max_tokens=1))[0].metrics
    assert again is not None and once_more is not None
    assert once_more.num_cached_tokens == 96
    assert again.num_cached_tokens == 0
    assert once_more.tpot_seconds is None


def test_a_failed_sweep_leaves_the_engine_as_it_was(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens_of(llm.generate(ONCE, GREEDY)[0])
    stream = llm.stream(ONCE, GREEDY)
    got = [token for _ in range(4) for token in next(stream).token_ids]
    engine = engine_of(llm)
    with monkeypatch.context() as broken:

        def fail(*_: object, **__: object) -> Sampled:
            raise RuntimeError("the device fell off")

        broken.setattr("headrace.engine.engine.draw", fail)
        job = llm.run([request(7, max_tokens=4)])
        with pytest.raises(SweepError, match="RuntimeError: the device fell off"):
            next(job)
    assert engine.scheduler.num_running + engine.scheduler.num_waiting == 1  # the job's own request went with it
    got += [token for piece in stream for token in piece.token_ids]
    assert tuple(got) == expected


def test_a_closed_llm_says_so(stories: Path) -> None:
    llm = LLM(stories, memory="1GiB", max_model_len=64, max_num_batched_tokens=16)
    llm.close()
    llm.close()
    with pytest.raises(HeadraceError, match="closed"):
        llm.generate(ONCE)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[LLM]:
    """A model that shares no weights between embedding and head."""
    save_tiny("llama", tmp_path)
    with LLM(
        tmp_path, load_format="dummy", dtype="float32", memory="1GiB", max_num_seqs=8, max_num_batched_tokens=64
    ) as llm:
        yield llm


def poison(llm: LLM, token: int) -> None:
    """Makes the embedding of one token NaN."""
    weight = engine_of(llm).executor.model.module.get_input_embeddings().get_parameter("weight")
    with torch.inference_mode():
        weight[token] = math.nan


def test_rows_without_finite_logits_fail_alone(tiny: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20)
    prompts = [[7 + i, 3, 9 + i, 11] * (1 + i) for i in range(6)]
    expected = [tokens_of(output) for output in tiny.generate(prompts, params)]
    bad_token = min(set(range(20, 97)).difference(*prompts, *expected))
    poison(tiny, bad_token)
    rows = [request(i, prompt, temperature=0, max_tokens=20) for i, prompt in enumerate(prompts)]
    bad = [request(100 + i, [9, 3, bad_token, 4 + i, 8] * 7, max_tokens=20, n=1 + i % 2) for i in range(12)]
    mixed = [row for pair in itertools.zip_longest(bad, rows) for row in pair if row is not None]
    for _ in range(2):  # the second time rows get the blocks that the bad ones had
        outputs = {output.request_id: output for output in tiny.run(mixed)}
        errors = [outputs[row.request_id].error for row in bad]
        assert {error.code for error in errors if error is not None} == {"non_finite_logits"} and all(errors)
        assert [tokens_of(outputs[row.request_id]) for row in rows] == expected
    assert_empty(tiny)


def test_what_a_bad_row_leaves_in_the_cache_harms_nobody(tiny: LLM) -> None:
    """A prefix that ends within a block which has NaN behind it, and new rows in the blocks of the bad one."""
    params = SamplingParams(temperature=0, max_tokens=4)
    shared = [11, 12, 13, 14, 15, 16, 17, 18]
    prompts = [[*shared, 30, 31], [*shared, 40, 31], [50, 51]]
    expected = [tokens_of(output) for output in tiny.generate(prompts, params)]
    bad_token = min(set(range(60, 97)).difference(*expected))
    poison(tiny, bad_token)
    engine = engine_of(tiny)
    engine.scheduler._cache = KVCacheManager(engine.executor.model.table.groups, num_blocks=[3])
    with pytest.raises(RequestError, match="not finite"):
        tiny.generate([[*shared, 40, bad_token, *range(41, 59), *range(41, 50)]], params)
    assert [tokens_of(output) for prompt in prompts for output in tiny.generate([prompt], params)] == expected
