"""Logits are changed as transformers' processors change them, and OpenAI's penalties as OpenAI defines them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from headrace.errors import RequestError
from headrace.sampling.adjusting import adjust
from headrace.sampling.parameters import ResolvedSampling

NUM_TOKENS = 50
PROMPT, OUTPUT = [3, 4, 4, 17], [5, 6, 5, 5, 30]


def make_logits(seed: int = 0) -> Tensor:
    return torch.randn(NUM_TOKENS, generator=torch.Generator().manual_seed(seed)) * 3


def adjusted(logits: Tensor, output_ids: list[int] | None = None, **parameters: Any) -> Tensor:
    changed = logits.clone()
    sampling = ResolvedSampling(max_tokens=9, **parameters)
    assert sampling.adjusts_logits
    adjust(changed, sampling, PROMPT, OUTPUT if output_ids is None else output_ids)
    return changed


def processed(processor: Any, logits: Tensor, output_ids: list[int]) -> Tensor:
    scores: Tensor = processor(torch.tensor([PROMPT + output_ids]), logits[None].clone())
    return scores[0]


@pytest.mark.parametrize("output_ids", [[], OUTPUT])
@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_is_penalized_as_by_transformers(penalty: float, output_ids: list[int]) -> None:
    expected = processed(RepetitionPenaltyLogitsProcessor(penalty), make_logits(), output_ids)
    assert torch.equal(adjusted(make_logits(), output_ids, repetition_penalty=penalty), expected)


@pytest.mark.parametrize("word", [[7], [5, 30, 8], [30, 8], [6, 5, 9], [6, 5, 5, 30, 1], [1, 5, 6, 5, 5, 30, 2]])
def test_bad_words_are_ruled_out_as_by_transformers(word: list[int]) -> None:
    """Of a word that begins in the prompt, transformers rules out the end; the answer alone is ours, as vLLM's."""
    expected = processed(NoBadWordsLogitsProcessor([word], eos_token_id=-1), make_logits(), OUTPUT)
    assert torch.equal(adjusted(make_logits(), bad_words=(tuple(word),)), expected)


def test_a_bad_word_that_begins_in_the_prompt_is_no_bad_word_of_the_answer() -> None:
    assert torch.equal(adjusted(make_logits(), [], bad_words=((4, 17, 9),)), make_logits())


def test_biases_are_added_as_by_transformers() -> None:
    bias = {(3,): 5.0, (17,): -100.0, (49,): 0.25}
    processor = SequenceBiasLogitsProcessor([[list(tokens), value] for tokens, value in bias.items()])
    expected = processed(processor, make_logits(), OUTPUT)
    given = tuple((tokens[0], value) for tokens, value in bias.items())
    assert torch.equal(adjusted(make_logits(), logit_bias=given), expected)


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, -1.5), (2.0, 0.3)])
def test_penalties_are_those_of_openai(presence: float, frequency: float) -> None:
    """logit - count * frequency - (count > 0) * presence, over the tokens of the answer."""
    logits, counts = make_logits(), Counter(OUTPUT)
    expected = [
        value - counts[token] * frequency - (counts[token] > 0) * presence for token, value in enumerate(logits)
    ]
    changed = adjusted(logits, presence_penalty=presence, frequency_penalty=frequency)
    torch.testing.assert_close(changed, torch.stack(expected))
    untouched = [token for token in range(NUM_TOKENS) if token not in OUTPUT]
    assert torch.equal(changed[untouched], logits[untouched])


def test_an_answer_without_tokens_has_no_penalties_of_openai() -> None:
    assert torch.equal(adjusted(make_logits(), [], presence_penalty=2.0, frequency_penalty=2.0), make_logits())


def test_nothing_is_adjusted_by_default() -> None:
    assert not ResolvedSampling(max_tokens=9).adjusts_logits


def test_logits_processors_get_both_parts_of_the_row_and_follow_one_another() -> None:
    seen: list[tuple[Sequence[int], Sequence[int]]] = []

    def watch(prompt_ids: Sequence[int], output_ids: Sequence[int], logits: Tensor) -> Tensor:
        seen.append((prompt_ids, output_ids))
        return logits * 2

    def in_place(prompt_ids: Sequence[int], output_ids: Sequence[int], logits: Tensor) -> Tensor:
        logits[7] = 100.0
        return logits

    found = adjusted(make_logits(), logits_processors=(watch, in_place))
    expected = make_logits() * 2
    expected[7] = 100.0
    assert torch.equal(found, expected)
    assert seen == [(tuple(PROMPT), tuple(OUTPUT))]


def broken(prompt_ids: Sequence[int], output_ids: Sequence[int], logits: Tensor) -> Tensor:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (broken, "logits processor broken failed: KeyError: 'gone'"),
        (lambda *row: row[2][:-1], r"it returned \(49,\); expected a tensor of shape \(50,\)"),
        (lambda *row: None, "it returned NoneType; expected a tensor"),
    ],
)
def test_a_logits_processor_that_fails_is_an_error_of_the_request(processor: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        adjusted(make_logits(), logits_processors=(processor,))
    assert (caught.value.code, caught.value.param) == ("logits_processor_failed", "logits_processors")
