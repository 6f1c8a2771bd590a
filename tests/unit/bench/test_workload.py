"""Rows to measure with."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.bench.workload import Workload, ordinary_token_ids
from headrace.errors import OptionError

WORKLOAD = Workload(prompt_tokens=40, max_tokens=7, num_rows=5, seed=3)
IDS = np.array([4, 5, 9, 10, 11])


def prompts(workload: Workload, run: int) -> list[tuple[int, ...]]:
    return [request.prompt_token_ids for request in workload.requests(run, IDS)]


def test_every_row_has_as_many_tokens_as_were_asked_for_all_of_them_ordinary() -> None:
    found = prompts(WORKLOAD, 0)
    assert [len(prompt) for prompt in found] == [40] * 5
    assert {token for prompt in found for token in prompt} == set(IDS.tolist())


def test_the_same_seed_gives_the_same_prompts_and_another_run_or_seed_gives_others() -> None:
    assert prompts(WORKLOAD, 0) == prompts(WORKLOAD, 0)
    others = [
        prompts(WORKLOAD, 1),
        prompts(Workload(prompt_tokens=40, max_tokens=7, num_rows=5, seed=4), 0),
        prompts(Workload(prompt_tokens=40, max_tokens=7, num_rows=5, seed=-4), 0),
    ]
    assert all(other != prompts(WORKLOAD, 0) for other in others)


def test_answers_are_greedy_and_have_exactly_max_tokens() -> None:
    request = WORKLOAD.requests(0, IDS)[2]
    params = request.params
    assert request.request_id == 2
    assert (params.max_tokens, params.temperature, params.ignore_eos) == (7, 0, True)
    assert params.repetition_penalty == 1.0


def test_rows_that_do_not_fit_the_context_are_refused() -> None:
    WORKLOAD.check_room(47)
    with pytest.raises(OptionError, match="need a context of 47 tokens; it holds 46 here"):
        WORKLOAD.check_room(46)


def test_ordinary_tokens_are_words_of_the_tokenizer_that_the_model_knows() -> None:
    assert ordinary_token_ids(vocab_size=8, num_words=10, special={0, 2, 9}).tolist() == [1, 3, 4, 5, 6, 7]
    assert ordinary_token_ids(vocab_size=8, num_words=5, special={0, 6}).tolist() == [1, 2, 3, 4]


def test_without_a_tokenizer_every_token_of_the_model_is_ordinary_but_its_end() -> None:
    assert ordinary_token_ids(vocab_size=4, num_words=0, special={2}).tolist() == [0, 1, 3]


def test_a_vocabulary_without_ordinary_tokens_is_refused() -> None:
    with pytest.raises(OptionError, match="special tokens only"):
        ordinary_token_ids(vocab_size=2, num_words=2, special={0, 1})
