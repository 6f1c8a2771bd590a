"""Draws the next token of each row from the model's logits.

A row's token depends, bit for bit, on its own logits, parameters, seed, sample and step; not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from headrace.errors import RequestError
from headrace.sampling.adjusting import adjust, follow
from headrace.sampling.candidates import (
    BLOCK_WIDTH,
    Bools,
    Floats,
    Ints,
    Limits,
    draw_candidate,
    draw_typical,
    draw_unlimited,
    most_likely,
    most_likely_one,
    rank_candidates,
)
from headrace.sampling.counter_random import uniform
from headrace.sampling.guidance import Guide
from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.tokens import SampledToken, TokenLogprobs
from headrace.units import MIB

# How many of its most likely tokens a row looks at: most nuclei hold fewer than 64. A row that may keep more is ranked
# again, deeper, and at last in full. Every step is decided by the row alone.
_NUCLEUS_DEPTHS = (64, 512, 4096)
_DEEPEST = 4096
# Logits that are scored at a time, some ten bytes each: 16 rows of a vocabulary of 131,072.
_LOGITS_SCORED_AT_ONCE = 1 << 21
# More than MAX_LOGPROBS, so that of equals at the end of a list those with lower ids are in it.
_LOGPROBS_DEPTH = 128
# A copy in the logits' own dtype, the float32 logits, rows of them that are ranked again, a softmax.
_BYTES_OF_FLOAT = 4
_BYTES_PER_LOGIT = 4 * _BYTES_OF_FLOAT
# Float64 and 64-bit ids of a candidate, and what numpy makes of them.
_BYTES_PER_CANDIDATE = 64

# How a row is drawn, and the depths at which its candidates are looked for.
_Method = tuple[Literal["as_it_is", "greedy", "unlimited", "top_k", "nucleus", "typical"], tuple[int, ...]]
_AS_IT_IS: _Method = ("as_it_is", ())  # greedy, and nothing changes the logits


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRow:
    """What besides its logits decides a row's token.

    Attributes:
        sample_index: which of the request's `n` answers.
        step: tokens generated so far.
        prompt_ids, output_ids: what came before, for penalties and words that must not come.
        guide: which tokens the form of the answer allows next.
    """

    sampling: ResolvedSampling
    sample_index: int
    step: int
    seed: int
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    guide: Guide | None = None


def sample(logits: Tensor, rows: Sequence[SamplingRow], *, max_temporary_bytes: int = 32 * MIB) -> list[SampledToken]:
    """Returns the next token of each row, in the order of `rows`; `logits` (R, V), any float dtype, stay as they are.

    Rows are worked on in parts whose temporaries stay below `max_temporary_bytes`, but at least one row at a time.
    """
    num_tokens = logits.shape[1]
    token_ids = np.zeros(len(rows), dtype=np.int64)
    is_finite = np.ones(len(rows), dtype=np.bool_)
    errors: dict[int, RequestError] = {}
    groups: dict[_Method, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(_method(row, num_tokens), []).append(index)
    for indices in _parts(groups.pop(_AS_IT_IS, []), max(1, max_temporary_bytes // (_BYTES_OF_FLOAT * num_tokens))):
        token_ids[indices], is_finite[indices] = most_likely_one(_pick(logits, indices))
    rows_at_once = _rows_at_once(num_tokens, max_temporary_bytes)
    for method, members in groups.items():
        for indices in _parts(members, rows_at_once):
            part = [rows[index] for index in indices]
            loaded = _load(logits, indices)
            for place, index in enumerate(indices):
                try:
                    _adjust(loaded[place, :num_tokens], rows[index])
                except RequestError as error:
                    errors[index] = error
            _mask_endings(loaded, part, num_tokens)
            token_ids[indices], is_finite[indices] = _draw(loaded, part, method)
    logprobs: dict[int, TokenLogprobs] = {}
    for indices in _parts([i for i, row in enumerate(rows) if row.sampling.needs_logprobs], rows_at_once):
        nums_top = [rows[index].sampling.logprobs or 0 for index in indices]
        found = _logprobs(_load(logits, indices), token_ids[indices], nums_top, num_tokens)
        logprobs.update(zip(indices, found, strict=True))
    return [
        SampledToken(token_id=token_id, logprob=logprobs.get(index), is_finite=finite, error=errors.get(index))
        for index, (token_id, finite) in enumerate(zip(token_ids.tolist(), is_finite.tolist(), strict=True))
    ]


def score(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Returns how likely each of `token_ids` is by its row of `logits` (T, V), with the `num_top` likeliest."""
    ids = np.asarray(token_ids, dtype=np.int64)
    rows_at_once = max(1, _LOGITS_SCORED_AT_ONCE // logits.shape[1])
    return [
        entry
        for rows in _parts(list(range(len(ids))), rows_at_once)
        for entry in _logprobs(_load(logits, rows), ids[rows], [num_top] * len(rows), logits.shape[1])
    ]


def _method(row: SamplingRow, num_tokens: int) -> _Method:
    sampling = row.sampling
    if sampling.is_greedy:
        return ("greedy", ()) if _changes_logits(row) or num_tokens % BLOCK_WIDTH else _AS_IT_IS
    if sampling.typical_p < 1:
        return "typical", ()
    if 0 < sampling.top_k < num_tokens:
        # Some more than top_k, as tokens equal to the last one stay too; few depths, so that rows can go together.
        depth = max(16, 1 << (sampling.top_k + max(8, sampling.top_k // 4) - 1).bit_length())
        return "top_k", (depth,) if depth <= _DEEPEST else ()
    if sampling.top_p < 1 or sampling.min_p > 0:
        return "nucleus", _NUCLEUS_DEPTHS
    return "unlimited", ()


def _rows_at_once(num_tokens: int, max_temporary_bytes: int) -> int:
    """Returns how many rows fit beside the full ranking of one, at least one."""
    width = num_tokens + BLOCK_WIDTH
    bytes_per_row = _BYTES_PER_LOGIT * width + _BYTES_PER_CANDIDATE * min(width, _DEEPEST)
    return max(1, (max_temporary_bytes - _BYTES_PER_CANDIDATE * width) // bytes_per_row)


def _parts(indices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _changes_logits(row: SamplingRow) -> bool:
    return row.sampling.adjusts_logits or row.guide is not None or row.step < row.sampling.min_tokens


def _pick(logits: Tensor, indices: list[int]) -> Tensor:
    is_run = indices[-1] - indices[0] + 1 == len(indices)  # indices ascend; a run needs no copy
    return logits[indices[0] : indices[-1] + 1] if is_run else logits[torch.tensor(indices, device=logits.device)]


def _load(logits: Tensor, indices: list[int]) -> Tensor:
    """Returns the rows as float32, filled up with -inf to whole blocks."""
    num_tokens = logits.shape[1]
    width = -(-num_tokens // BLOCK_WIDTH) * BLOCK_WIDTH
    loaded = torch.empty(len(indices), width, dtype=torch.float32, device=logits.device)
    loaded[:, :num_tokens] = _pick(logits, indices)
    loaded[:, num_tokens:] = -torch.inf
    return loaded


def _adjust(logits: Tensor, row: SamplingRow) -> None:
    if row.sampling.adjusts_logits:
        adjust(logits, row.sampling, row.prompt_ids, row.output_ids)
    if row.guide is not None:
        follow(logits, row.guide)


def _mask_endings(logits: Tensor, rows: Sequence[SamplingRow], num_tokens: int) -> None:
    """Rules out the tokens that would end a row before its `min_tokens`."""
    for place, row in enumerate(rows):
        if row.step < row.sampling.min_tokens:
            endings = [token_id for token_id in row.sampling.ending_token_ids if token_id < num_tokens]
            logits[place, endings] = -torch.inf


def _draw(logits: Tensor, rows: Sequence[SamplingRow], method: _Method) -> tuple[Ints, Bools]:
    """Returns the tokens of rows that are drawn by one method, and which rows were finite; scales `logits` in place."""
    kind, depths = method
    if kind == "greedy":
        return most_likely_one(logits)
    uniforms = uniform([row.seed for row in rows], [row.sample_index for row in rows], [row.step for row in rows])
    temperatures = [row.sampling.temperature for row in rows]
    logits /= torch.tensor(temperatures, dtype=torch.float32, device=logits.device)[:, None]
    if kind == "unlimited":
        return draw_unlimited(logits, uniforms)
    if kind == "typical":
        return draw_typical(logits, [row.sampling for row in rows], uniforms)
    limits = Limits.of([row.sampling for row in rows])
    return _draw_ranked(logits, limits, uniforms, depths, None if kind == "top_k" else logits.softmax(-1))


def _draw_ranked(
    logits: Tensor, limits: Limits, uniforms: Floats, depths: tuple[int, ...], probabilities: Tensor | None
) -> tuple[Ints, Bools]:
    """Draws every row at the first of `depths` at which its candidates are complete."""
    num_rows, num_tokens = logits.shape
    token_ids = np.zeros(num_rows, dtype=np.int64)
    is_finite = np.ones(num_rows, dtype=np.bool_)
    pending = np.arange(num_rows)
    for depth in (*depths, num_tokens):
        if len(pending) == 0:
            break
        incomplete = []
        # A full ranking takes more memory than all the rest, so it is done for one row at a time.
        for part in [pending] if depth <= _DEEPEST else pending[:, None]:
            index = slice(None) if len(part) == num_rows else torch.from_numpy(part).to(logits.device)
            candidates = rank_candidates(
                logits[index], limits.select(part), depth, None if probabilities is None else probabilities[index]
            )
            token_ids[part] = draw_candidate(candidates, uniforms[part])
            is_finite[part] = candidates.is_finite
            incomplete.append(part[~candidates.is_complete])
        pending = np.concatenate(incomplete)
    return token_ids, is_finite


def _logprobs(logits: Tensor, token_ids: Ints, nums_top: Sequence[int], num_tokens: int) -> list[TokenLogprobs]:
    """Returns the log-probabilities of `token_ids` (R,) and, per row, of as many most likely tokens as it asks for."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, torch.from_numpy(token_ids).to(logits.device)[:, None])
    ranks = (logprobs > chosen).sum(-1) + 1
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(nums_top)
    if any(nums_top):
        values, top_ids = most_likely(logprobs, _LOGPROBS_DEPTH)
        ends = [min(num_top, num_tokens) for num_top in nums_top]
        tops = [
            tuple(zip(top_ids[place, :end].tolist(), values[place, :end].tolist(), strict=True))
            for place, end in enumerate(ends)
        ]
    return [
        TokenLogprobs(token_id=token_id, logprob=logprob, rank=rank, top=top)
        for token_id, logprob, rank, top in zip(
            token_ids.tolist(), chosen[:, 0].tolist(), ranks.tolist(), tops, strict=True
        )
    ]
