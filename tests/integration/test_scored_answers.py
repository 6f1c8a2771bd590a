"""How likely the model finds a prompt and its answers: as transformers reckons it, however the prompt is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.engine.outputs import RequestOutput
from tests.parity.harness import make_prompt, tiny_reference
from tests.tiny_models import save_tiny, write_tokenizer

PROMPTS = [make_prompt(length) for length in (1, 2, 33, 70)]
LIKELY = 1e-4
"""Natural logarithms; fp32, summed in another order."""


@pytest.fixture(scope="module", params=[7, 1024], ids=["in pieces", "at once"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    write_tokenizer(folder, 97)
    with LLM(folder, max_num_batched_tokens=request.param, max_num_seqs=4) as opened:
        yield opened


def reference(token_ids: tuple[int, ...]) -> torch.Tensor:
    """Returns the log-probabilities (T, vocabulary) after every token."""
    with torch.inference_mode():
        return tiny_reference("llama")(torch.tensor([token_ids])).logits[0].log_softmax(-1)


def check_prompt(output: RequestOutput, num_top: int) -> None:
    prompt, logprobs = output.prompt_token_ids, reference(output.prompt_token_ids)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(prompt)
    for position, entry in enumerate(output.prompt_logprobs[1:], 1):
        assert entry is not None and entry.token_id == prompt[position]
        expected = logprobs[position - 1]
        assert entry.logprob == pytest.approx(expected[entry.token_id].item(), abs=LIKELY)
        assert entry.rank == int((expected > expected[entry.token_id]).sum()) + 1
        assert [token_id for token_id, _ in entry.top] == expected.topk(num_top).indices.tolist()


@pytest.mark.parametrize("num_top", [0, 3])
def test_every_token_of_a_prompt_is_as_likely_as_transformers_finds_it(llm: LLM, num_top: int) -> None:
    params = SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=num_top)
    plain = llm.generate(list(PROMPTS), SamplingParams(max_tokens=3, temperature=0))
    for output, other in zip(llm.generate(list(PROMPTS), params), plain, strict=True):
        check_prompt(output, num_top)
        assert output.outputs[0].token_ids == other.outputs[0].token_ids


def test_scored_prompts_run_beside_others_that_share_their_beginning(llm: LLM) -> None:
    scored = SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=1)
    plain = SamplingParams(max_tokens=2, temperature=0)
    outputs = llm.generate([PROMPTS[3]] * 4, [plain, scored, plain, scored])
    assert [output.prompt_logprobs is None for output in outputs] == [True, False, True, False]
    check_prompt(outputs[1], 1)
    check_prompt(outputs[3], 1)
    assert len({output.outputs[0].token_ids for output in outputs}) == 1


def test_logprobs_of_an_answer_are_those_of_transformers(llm: LLM) -> None:
    output = llm.generate([PROMPTS[2]], SamplingParams(max_tokens=6, temperature=0, logprobs=2))[0]
    answer = output.outputs[0]
    logprobs = reference(PROMPTS[2] + answer.token_ids)
    assert answer.logprobs is not None
    for place, entry in enumerate(answer.logprobs, len(PROMPTS[2]) - 1):
        assert entry.logprob == pytest.approx(logprobs[place, entry.token_id].item(), abs=LIKELY)


def test_of_several_answers_the_likeliest_per_token_are_given_best_first(llm: LLM) -> None:
    params = {"max_tokens": 5, "temperature": 1.5, "seed": 4}
    drawn = llm.generate([PROMPTS[1]], SamplingParams(n=6, logprobs=0, **params))[0].outputs  # type: ignore[arg-type]
    means = {answer.token_ids: sum(entry.logprob for entry in answer.logprobs or ()) / 5 for answer in drawn}
    best = sorted(means, key=lambda token_ids: means[token_ids], reverse=True)[:2]
    given = llm.generate([PROMPTS[1]], SamplingParams(n=2, best_of=6, **params))[0].outputs  # type: ignore[arg-type]
    assert [answer.token_ids for answer in given] == best
    assert [answer.index for answer in given] == [0, 1]
    assert all(answer.logprobs is None for answer in given)


def test_a_job_writes_what_was_asked_for(tmp_path: Path, llm: LLM) -> None:
    from headrace.jobs.answers import AnswerWriter
    from headrace.jobs.rows import RowKey

    output = llm.generate([PROMPTS[1]], SamplingParams(max_tokens=1, prompt_logprobs=1))[0]
    writer = AnswerWriter(model_name="m", tokens=llm.tokenizer)
    for shape in ("short", "batch_chat", "batch_completion"):
        line = writer.answer_line(RowKey(index=0, line=1, row_id="a", shape=shape, digest="d"), output)  # type: ignore[arg-type]
        assert b'"prompt_logprobs": [null, {' in line
