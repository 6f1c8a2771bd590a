from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.sampler import SamplingRow, sample

MANY_PARAMETERS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 2.5, "top_p": 0.95},
    {"temperature": 1.0, "min_p": 0.02},
    {"temperature": 1.0, "top_k": 700, "top_p": 0.9, "min_p": 0.001},
    {"logprobs": 4},
    {"temperature": 1.0, "min_tokens": 50, "stop_token_ids": frozenset({1, 2}), "logprobs": 0},
    {"temperature": 1.0, "typical_p": 0.7, "top_k": 300},
    {"repetition_penalty": 1.5, "bad_words": ((4,), (2, 9))},
    {"temperature": 0.8, "presence_penalty": 1.0, "frequency_penalty": -0.5, "logit_bias": ((7, 4.0),), "top_p": 0.9},
]


def make_row(*, sample_index: int = 0, step: int = 0, seed: int = 0, **parameters: Any) -> SamplingRow:
    sampling = ResolvedSampling(**{"max_tokens": 100, **parameters})
    return SamplingRow(
        sampling=sampling, sample_index=sample_index, step=step, seed=seed, prompt_ids=(3, 5), output_ids=(9, 2)
    )


def make_logits(num_rows: int, num_tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def token_ids(logits: Tensor, rows: list[SamplingRow], **options: int) -> list[int]:
    return [token.token_id for token in sample(logits, rows, **options)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [1, 5, 127, 128, 129, 1000, 32000, 50257])
def test_greedy_is_the_first_largest_logit(num_tokens: int, dtype: torch.dtype) -> None:
    logits = make_logits(16, num_tokens, dtype=dtype)
    assert token_ids(logits, [make_row()] * 16) == logits.float().argmax(-1).tolist()


@pytest.mark.parametrize("num_tokens", [1000, 1024])
def test_greedy_takes_the_lowest_id_of_equals(num_tokens: int) -> None:
    logits = make_logits(64, num_tokens).round().to(torch.bfloat16)
    assert (logits == logits.amax(-1, keepdim=True)).sum() > 80
    assert token_ids(logits, [make_row()] * 64) == logits.float().argmax(-1).tolist()


def test_logits_stay_as_they_are() -> None:
    logits = make_logits(len(MANY_PARAMETERS), 1000)
    before = logits.clone()
    sample(logits, [make_row(**parameters) for parameters in MANY_PARAMETERS])
    assert torch.equal(logits, before)


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.empty(0, 100), []) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1000, 20001])
def test_a_row_draws_the_same_token_alone_and_among_64_others(num_tokens: int, dtype: torch.dtype) -> None:
    rows = [
        make_row(**MANY_PARAMETERS[index % len(MANY_PARAMETERS)], sample_index=index % 3, step=index, seed=index * 7)
        for index in range(64)
    ]
    logits = make_logits(64, num_tokens, dtype=dtype)
    together = sample(logits, rows)
    for max_temporary_bytes in (0, 3_000_000, 10_000_000):
        assert sample(logits, rows, max_temporary_bytes=max_temporary_bytes) == together
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
    assert sample(logits[order], [rows[index] for index in order]) == [together[index] for index in order]
    for index, row in enumerate(rows):
        assert sample(logits[index : index + 1], [row]) == [together[index]]


def test_the_number_of_threads_does_not_change_a_token() -> None:
    rows = [make_row(**parameters, seed=index) for index, parameters in enumerate(MANY_PARAMETERS)]
    logits = make_logits(len(rows), 50257)
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(sample(logits, rows))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("parameters", [{}, {"top_k": 50}, {"top_p": 0.95}], ids=str)
def test_other_samples_steps_and_seeds_draw_other_tokens(parameters: dict[str, Any]) -> None:
    logits = torch.zeros(1, 5000).expand(60, -1)
    rows = [make_row(temperature=1.0, **parameters, sample_index=index) for index in range(20)]
    rows += [make_row(temperature=1.0, **parameters, step=index) for index in range(1, 21)]
    rows += [make_row(temperature=1.0, **parameters, seed=index) for index in range(1, 21)]
    assert len(set(token_ids(logits, rows))) > 55


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.2, "top_k": 10, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.0, "typical_p": 0.5},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "typical_p": 0.8},
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_their_probability_says(parameters: dict[str, Any]) -> None:
    num_draws, num_tokens = 20_000, 300
    logits = make_logits(1, num_tokens, seed=5) * 0.5
    probabilities = warped(logits, **parameters)[0]
    rows = [make_row(**parameters, step=step, seed=11) for step in range(num_draws)]
    counts = Counter(token_ids(logits.expand(num_draws, -1), rows))
    assert set(counts) <= set(probabilities.nonzero()[:, 0].tolist())
    # Tokens expected less than 10 times are counted as one.
    expected = (probabilities * num_draws).tolist()
    often = [token for token in range(num_tokens) if expected[token] >= 10]
    cells = [(counts[token], expected[token]) for token in often]
    rest = num_draws - sum(cell[1] for cell in cells)
    if rest > 10:
        cells.append((num_draws - sum(cell[0] for cell in cells), rest))
    chi_square = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    degrees = len(cells) - 1
    assert degrees > 1
    # The 99.9th percentile, by Wilson and Hilferty's approximation.
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


def warped(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
) -> Tensor:
    ids = torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(ids, logits.double())
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    if typical_p < 1:
        scores = TypicalLogitsWarper(typical_p)(ids, scores)
    return scores.softmax(-1)


def test_a_nucleus_of_thousands_of_tokens_is_drawn_from_in_full() -> None:
    logits = torch.zeros(300, 20_000)
    rows = [make_row(temperature=1.0, top_p=0.5, step=step) for step in range(300)]
    drawn = token_ids(logits, rows)
    assert max(drawn) < 10_000
    assert max(drawn) > 9_500
    assert min(drawn) < 500


@pytest.mark.parametrize("parameters", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}], ids=str)
def test_end_and_stop_tokens_wait_for_min_tokens(parameters: dict[str, Any]) -> None:
    logits = torch.full((2, 500), -20.0)
    logits[:, [3, 4, 5]] = torch.tensor([30.0, 29.0, 5.0])
    endings = {"eos_token_ids": frozenset({3}), "stop_token_ids": frozenset({4, 9999}), "min_tokens": 2}
    rows = [make_row(**parameters, **endings, step=1), make_row(**parameters, **endings, step=2)]
    first, second = token_ids(logits, rows)
    assert first == 5
    assert second in {3, 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [200, 1024, 5000])
def test_logprobs_are_the_log_softmax_of_the_raw_logits(num_tokens: int, dtype: torch.dtype) -> None:
    logits = make_logits(8, num_tokens, dtype=dtype)
    rows = [make_row(temperature=3.0 * (index % 2), top_k=20, logprobs=index, seed=index) for index in range(8)]
    expected = logits.float().log_softmax(-1)
    order = expected.sort(dim=-1, descending=True, stable=True)
    for index, token in enumerate(sample(logits, rows)):
        assert token.logprob is not None
        assert token.logprob.token_id == token.token_id
        assert token.logprob.logprob == pytest.approx(expected[index, token.token_id].item(), abs=1e-5)
        assert token.logprob.rank == (expected[index] > expected[index, token.token_id]).sum().item() + 1
        assert [id_ for id_, _ in token.logprob.top] == order.indices[index, :index].tolist()
        assert [value for _, value in token.logprob.top] == pytest.approx(
            order.values[index, :index].tolist(), abs=1e-5
        )


def test_the_rank_of_an_unlikely_token_is_found() -> None:
    logits = torch.arange(1000.0)[None] / 1e6
    (token,) = sample(logits, [make_row(temperature=1.0, logprobs=0, seed=4)])
    assert token.logprob is not None
    assert token.logprob.rank == 1000 - token.token_id > 200


def test_logprobs_of_a_small_vocabulary_are_all_its_tokens() -> None:
    (token,) = sample(torch.tensor([[1.0, 3.0, 2.0]]), [make_row(logprobs=20)])
    assert token.logprob is not None
    assert [id_ for id_, _ in token.logprob.top] == [1, 2, 0]


@pytest.mark.parametrize("parameters", MANY_PARAMETERS, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("num_tokens", [1000, 1024])
def test_a_row_whose_logits_are_not_finite_says_so_and_leaves_the_others_alone(
    parameters: dict[str, Any], value: float, num_tokens: int
) -> None:
    logits = make_logits(3, num_tokens)
    rows = [make_row(**parameters, seed=seed) for seed in range(3)]
    expected = sample(logits, rows)
    logits[1, 77] = value
    tokens = sample(logits, rows)
    assert [token.is_finite for token in tokens] == [True, False, True]
    assert (tokens[0], tokens[2]) == (expected[0], expected[2])


def test_temporaries_stay_within_the_bound() -> None:
    num_tokens, bound = 32_768, 8 * 2**20
    rows = [make_row(**MANY_PARAMETERS[index % len(MANY_PARAMETERS)], seed=index) for index in range(64)]
    logits = make_logits(64, num_tokens, dtype=torch.bfloat16)
    tracemalloc.start()  # sees numpy's memory, but not torch's
    sample(logits, rows, max_temporary_bytes=bound)
    _, numpy_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sample(logits, rows, max_temporary_bytes=bound)
    held = torch_peak = 0
    for event in sorted(profile.events(), key=lambda event: event.time_range.end):
        if event.cpu_parent is None:
            held += event.cpu_memory_usage
            torch_peak = max(torch_peak, held)
    assert bound // 4 < torch_peak + numpy_peak <= bound


def test_a_row_whose_processor_fails_has_an_error_and_the_others_their_tokens() -> None:
    def broken(*row: object) -> Tensor:
        raise ValueError("no")

    logits = make_logits(3, 300)
    rows = [make_row(seed=seed, temperature=1.0) for seed in range(3)]
    expected = token_ids(logits, rows)
    rows[1] = make_row(temperature=1.0, logits_processors=(broken,))
    found = sample(logits, rows)
    assert [token.error is None for token in found] == [True, False, True]
    assert [found[0].token_id, found[2].token_id] == [expected[0], expected[2]]
