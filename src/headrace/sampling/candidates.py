"""The tokens that top_k, top_p and min_p leave of a vocabulary, and drawing one of them.

The definitions are those of transformers' logits warpers, applied in their order. Every number of a row is computed
from that row alone, by reductions of a fixed shape, so a draw does not depend on the rows beside it.

Shapes: R rows, V vocabulary filled up with -inf to whole blocks, C candidates. `logits` are float32, already divided
by the row's temperature, and are not modified. What is small is computed in float64 with numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.sampling.parameters import ResolvedSampling

BLOCK_WIDTH = 128

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BELOW_ONE = 1.0 - 2.0**-53  # times any number rounds to less than that number


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What R rows leave out, each of shape (R, 1); `top_p` 1 and `min_p` 0 are off."""

    top_k: Ints
    top_p: Floats
    min_p: Floats

    @classmethod
    def of(cls, samplings: Sequence[ResolvedSampling]) -> Limits:
        return cls(
            top_k=np.array([[sampling.top_k] for sampling in samplings]),
            top_p=np.array([[sampling.top_p] for sampling in samplings]),
            min_p=np.array([[sampling.min_p] for sampling in samplings]),
        )

    def select(self, rows: Ints) -> Limits:
        return Limits(top_k=self.top_k[rows], top_p=self.top_p[rows], min_p=self.min_p[rows])


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The most likely tokens of each row, best first, the lower id first among equals.

    Attributes:
        token_ids: (R, C).
        weights: (R, C), in proportion to the probabilities; 0 for a token that is not kept.
        is_complete: (R,); False where the row may keep tokens beyond these C.
        is_finite: (R,); False where the logits hold NaN or their maximum is infinite.
    """

    token_ids: Ints
    weights: Floats
    is_complete: Bools
    is_finite: Bools


def rank_candidates(logits: Tensor, limits: Limits, depth: int, probabilities: Tensor | None) -> Candidates:
    """Returns what the limits keep of the `depth` most likely tokens of `logits` (R, V).

    Args:
        probabilities: softmax of `logits`; not needed with top_k, which shares 1 among the tokens that it keeps.
    """
    values, token_ids = most_likely(logits, depth)
    best, last = values[:, :1], values[:, -1:]
    is_finite = np.isfinite(best) & ~np.isnan(values).any(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # rows that are not finite give NaN and are reported as such
        if probabilities is None:
            kth = np.take_along_axis(values, np.minimum(limits.top_k, depth) - 1, axis=1)
            weights = np.where(values >= kth, np.exp(values.astype(np.float64) - best), 0.0)
            weights /= weights.sum(axis=1, keepdims=True)
            is_complete = (last < kth) | (last == -np.inf)
        else:
            chosen = torch.from_numpy(token_ids).to(logits.device)
            weights = probabilities.gather(1, chosen).cpu().numpy().astype(np.float64)
            is_complete = (limits.top_p < 1) & (weights.sum(axis=1, keepdims=True) >= limits.top_p)
            is_complete |= weights[:, -1:] < limits.min_p * weights[:, :1]
        # A token stays while those before it have not reached top_p; the first always stays.
        before = np.cumsum(weights, axis=1)[:, :-1]
        weights[:, 1:] *= (before < limits.top_p) | (limits.top_p >= 1)
        weights *= weights >= limits.min_p * weights[:, :1]
    return Candidates(
        token_ids=token_ids,
        weights=weights,
        is_complete=(is_complete | ~is_finite)[:, 0] | (depth >= logits.shape[1]),
        is_finite=is_finite[:, 0],
    )


def draw_candidate(candidates: Candidates, uniforms: Floats) -> Ints:
    """Returns one token per row: the one at `uniforms` (R,) of its cumulative distribution."""
    places = _invert(candidates.weights, uniforms * candidates.weights.sum(axis=1))
    return np.take_along_axis(candidates.token_ids, places[:, None], axis=1)[:, 0]


def draw_unlimited(logits: Tensor, uniforms: Floats) -> tuple[Ints, Bools]:
    """Returns one token per row of `logits` (R, V), nothing left out, and whether the row was finite; sorts nothing.

    The cumulative distribution runs in the order of token ids, over blocks first and then within one block.
    """
    blocks = logits.softmax(-1).view(len(logits), -1, BLOCK_WIDTH)
    sums = blocks.sum(-1).cpu().numpy().astype(np.float64)
    running = np.cumsum(sums, axis=1)
    targets = uniforms * running[:, -1]
    chosen = _invert(sums, targets)
    rows = np.arange(len(sums))
    inside = blocks[torch.from_numpy(rows), torch.from_numpy(chosen)].cpu().numpy().astype(np.float64)
    places = _invert(inside, targets - (running - sums)[rows, chosen])
    return chosen * BLOCK_WIDTH + places, np.isfinite(running[:, -1])


def draw_typical(logits: Tensor, samplings: Sequence[ResolvedSampling], uniforms: Floats) -> tuple[Ints, Bools]:
    """Returns one token per row of `logits` (R, V) after all limits, and whether the row was finite; one row at a time.

    Locally typical sampling (arXiv 2202.00666) comes last, on what the others leave, as in transformers.
    """
    token_ids = np.zeros(len(samplings), dtype=np.int64)
    is_finite = np.ones(len(samplings), dtype=np.bool_)
    for row, sampling in enumerate(samplings):
        part = logits[row : row + 1]
        shares = part.softmax(-1) if not sampling.top_k else None
        kept = rank_candidates(part, Limits.of([sampling]), part.shape[1], shares)
        weights = kept.weights[0] / kept.weights.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            information = -np.log(weights)
            average = np.nansum(weights * information)
        order = np.argsort(np.abs(information - average), kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= sampling.typical_p]] = 0.0
        typical = Candidates(
            token_ids=kept.token_ids, weights=weights[None], is_complete=kept.is_complete, is_finite=kept.is_finite
        )
        token_ids[row], is_finite[row] = draw_candidate(typical, uniforms[row : row + 1])[0], kept.is_finite[0]
    return token_ids, is_finite


def most_likely(logits: Tensor, depth: int) -> tuple[npt.NDArray[np.float32], Ints]:
    """Returns the `depth` largest of `logits` (R, V) and their ids, both (R, C) with C at most `depth`.

    Best first, the lower id first among equals. Of equals that straddle the end, any may be left out.
    """
    num_rows, num_tokens = logits.shape
    if depth >= num_tokens:
        values = logits.cpu().numpy()
        return _in_order(values, np.broadcast_to(np.arange(num_tokens), values.shape))
    num_blocks = num_tokens // BLOCK_WIDTH
    if 2 * depth > num_blocks:
        top = logits.topk(depth, sorted=False)
        return _in_order(top.values.cpu().numpy(), top.indices.cpu().numpy())
    # The blocks with the `depth` largest maxima hold the `depth` largest tokens.
    blocks = logits.view(num_rows, num_blocks, BLOCK_WIDTH)
    best = blocks.amax(-1).topk(depth, sorted=False).indices
    pool = blocks[torch.arange(num_rows, device=logits.device)[:, None], best].flatten(1)
    top = pool.topk(depth, sorted=False)
    token_ids = best.gather(1, top.indices // BLOCK_WIDTH) * BLOCK_WIDTH + top.indices % BLOCK_WIDTH
    return _in_order(top.values.cpu().numpy(), token_ids.cpu().numpy())


def most_likely_one(logits: Tensor) -> tuple[Ints, Bools]:
    """Returns the first largest of each row of `logits` (R, V), V whole blocks, and whether the row was finite."""
    blocks = logits.float().view(len(logits), -1, BLOCK_WIDTH)  # 16-bit ones are searched four times as slowly
    best = blocks.amax(-1).max(-1)  # the whole row's max with its index would not be vectorised
    inside = blocks[torch.arange(len(logits), device=logits.device), best.indices].max(-1).indices
    return (best.indices * BLOCK_WIDTH + inside).cpu().numpy(), best.values.isfinite().cpu().numpy()


def _invert(weights: Floats, targets: Floats) -> Ints:
    """Returns per row the first place of `weights` (R, C) whose running sum exceeds `targets` (R,).

    It never has weight 0: targets outside of the row's sum are moved inside.
    """
    running = np.cumsum(weights, axis=1)
    targets = np.clip(targets, 0.0, running[:, -1] * _BELOW_ONE)
    places: Ints = (running <= targets[:, None]).sum(axis=1)
    return places.clip(max=weights.shape[1] - 1)


def _in_order(values: npt.NDArray[np.float32], token_ids: Ints) -> tuple[npt.NDArray[np.float32], Ints]:
    """Returns both sorted along the rows: larger values first, NaN before all, the lower id first among equals.

    One sort of integers: the value's bits, made monotonous and reversed, above the id.
    """
    keys = np.invert(_monotonous((values + np.float32(0.0)).view(np.int32))).astype(np.int64)  # + 0.0: no -0.0
    keys <<= 32
    keys |= token_ids
    keys.sort(axis=1)
    sorted_values = _monotonous(np.invert((keys >> 32).astype(np.int32))).view(np.float32)
    keys &= 0xFFFFFFFF
    return sorted_values, keys


def _monotonous(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Maps the bits of float32 to integers in the order of the floats; its own inverse."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
