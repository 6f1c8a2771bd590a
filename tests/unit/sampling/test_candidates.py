"""What is kept, and with which probability, is what transformers' warpers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from headrace.sampling.candidates import (
    Candidates,
    Limits,
    draw_candidate,
    draw_unlimited,
    most_likely,
    rank_candidates,
)

NUM_ROWS, NUM_TOKENS = 6, 2048


def make_logits(seed: int, *, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    logits = torch.randn(NUM_ROWS, NUM_TOKENS, generator=torch.Generator().manual_seed(seed)) * scale
    return logits.to(dtype).float()


def rank(logits: Tensor, depth: int, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Candidates:
    columns = np.ones((len(logits), 1))
    limits = Limits(top_k=(columns * top_k).astype(np.int64), top_p=columns * top_p, min_p=columns * min_p)
    return rank_candidates(logits, limits, depth, None if top_k else logits.softmax(-1))


def probabilities(candidates: Candidates) -> Tensor:
    weights = candidates.weights / candidates.weights.sum(axis=1, keepdims=True)
    spread = np.zeros((len(weights), NUM_TOKENS))
    np.put_along_axis(spread, candidates.token_ids, weights, axis=1)
    return torch.from_numpy(spread)


def warped(logits: Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """The warpers in the order of transformers' `generate`; in float64, so that rounding decides no border case."""
    scores = logits.double()
    ids = torch.zeros(len(logits), 1, dtype=torch.long)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    return scores.softmax(-1)


LIMITS = [
    {"top_k": 1},
    {"top_k": 50},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 50, "min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.02},
    {"top_k": 200, "top_p": 0.95, "min_p": 0.01},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_candidates_and_probabilities_are_those_of_transformers(limits: dict[str, float], seed: int) -> None:
    logits = make_logits(seed)
    candidates = rank(logits, NUM_TOKENS, **limits)
    expected = warped(logits, **limits)
    assert candidates.is_complete.all()
    assert torch.equal(probabilities(candidates) > 0, expected > 0)
    torch.testing.assert_close(probabilities(candidates), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("depth", [16, 64, 256])
def test_fewer_candidates_are_complete_only_when_nothing_is_missing(limits: dict[str, float], depth: int) -> None:
    logits = make_logits(0)
    few, all_ = rank(logits, depth, **limits), rank(logits, NUM_TOKENS, **limits)
    num_kept = (all_.weights > 0).sum(axis=1)
    complete = few.is_complete
    assert not complete[num_kept > depth].any()
    if limits.get("top_k", 0) < depth // 2:
        assert complete[num_kept < depth // 2].all()
    torch.testing.assert_close(probabilities(few)[complete], probabilities(all_)[complete], rtol=1e-9, atol=0)


def test_all_tokens_equal_to_the_last_of_top_k_are_kept() -> None:
    logits = torch.full((1, NUM_TOKENS), -9.0)
    logits[0, 100:110] = 1.0
    logits[0, 500] = 2.0
    assert rank(logits, 16, top_k=4).token_ids[0, :11].tolist() == [500, *range(100, 110)]
    assert (rank(logits, 16, top_k=4).weights > 0).sum() == 11
    assert rank(logits, 16, top_k=4).is_complete.all()
    assert not rank(logits, 8, top_k=4).is_complete.any()
    assert torch.equal(probabilities(rank(logits, 16, top_k=4)) > 0, warped(logits, top_k=4) > 0)


@pytest.mark.parametrize("depth", [1, 5, 16, 100, 1024, NUM_TOKENS])
def test_the_most_likely_tokens_are_in_order_the_lower_id_first_among_equals(depth: int) -> None:
    logits = make_logits(1, dtype=torch.bfloat16)
    values, token_ids = most_likely(logits, depth)
    expected_values, expected_ids = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(torch.from_numpy(values), expected_values[:, :depth])
    # Which of the equals at the end are left out is open; all before them are decided.
    decided = expected_values[:, :depth] > expected_values[:, depth - 1 : depth]
    assert torch.equal(torch.from_numpy(token_ids)[decided], expected_ids[:, :depth][decided])
    if depth == NUM_TOKENS:
        assert torch.equal(torch.from_numpy(token_ids), expected_ids)


def test_negative_zero_equals_zero() -> None:
    logits = torch.full((1, NUM_TOKENS), -1.0)
    logits[0, 3], logits[0, 7] = -0.0, 0.0
    assert most_likely(logits, 2)[1].tolist() == [[3, 7]]


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_a_token_that_is_not_kept_is_never_drawn(uniform: float) -> None:
    logits = torch.full((NUM_ROWS, NUM_TOKENS), -torch.inf)
    for row in range(NUM_ROWS):
        logits[row, [3 + row, 700 + row, NUM_TOKENS - 1 - row]] = torch.tensor([1.0, 2.0, 1.5])
    uniforms = np.full(NUM_ROWS, uniform)
    allowed = [{3 + row, 700 + row, NUM_TOKENS - 1 - row} for row in range(NUM_ROWS)]
    unlimited, is_finite = draw_unlimited(logits, uniforms)
    ranked = draw_candidate(rank(logits, NUM_TOKENS, top_p=0.99), uniforms)
    assert is_finite.all()
    assert all(int(token) in kept for token, kept in zip(unlimited, allowed, strict=True))
    assert all(int(token) in kept for token, kept in zip(ranked, allowed, strict=True))


def test_drawing_inverts_the_cumulative_distribution_in_order_of_ids() -> None:
    logits = make_logits(2)
    running = logits.double().softmax(-1).cumsum(-1)
    uniforms = np.linspace(0.001, 0.999, NUM_ROWS)
    tokens, _ = draw_unlimited(logits, uniforms)
    places = torch.searchsorted(running, torch.from_numpy(uniforms)[:, None], right=True)[:, 0]
    assert tokens.tolist() == places.tolist()


@pytest.mark.parametrize("num_beside", [1, 2, 7, 63])
def test_the_weights_of_a_row_are_bitwise_the_same_beside_other_rows(num_beside: int) -> None:
    row = make_logits(3)[:1]
    beside = torch.randn(num_beside, NUM_TOKENS, generator=torch.Generator().manual_seed(4))
    together = torch.cat([beside, row])
    for limits in LIMITS:
        assert np.array_equal(rank(row, 64, **limits).weights[0], rank(together, 64, **limits).weights[-1])
    alone_sums = row.softmax(-1).view(1, -1, 128).sum(-1)
    assert torch.equal(alone_sums[0], together.softmax(-1).view(num_beside + 1, -1, 128).sum(-1)[-1])
