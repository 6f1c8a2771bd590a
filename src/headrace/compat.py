"""Generation and memory in the spelling of FlexGen and of transformers, over an `LLM`."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.engine.llm import LLM
from headrace.engine.memory_options import memory_options
from headrace.errors import RequestError
from headrace.sampling.parameters import SamplingParams

__all__ = ["generate", "memory_options"]

IntArray = npt.NDArray[np.integer[Any]]
Ids = TypeVar("Ids", Tensor, IntArray, list[list[int]])
_AnyIds = Tensor | IntArray | Sequence[Sequence[int]] | Sequence[int]


def generate(
    llm: LLM,
    input_ids: Ids,
    *,
    attention_mask: _AnyIds | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repetition_penalty: float = 1.0,
    bad_words_ids: Sequence[Sequence[int]] = (),
    max_new_tokens: int = 32,
    min_new_tokens: int = 0,
    stop: int | Sequence[int] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    num_return_sequences: int = 1,
    num_beams: int = 1,
    seed: int | None = None,
) -> Ids:
    """Continues each prompt; returns prompts and answers together, as both libraries do.

    Where a row ends early, the padding token fills it up to the longest one. What is not given is as it stands here,
    whatever `generation_config.json` says; only end tokens come from there.

    Args:
        input_ids: (B, T) tensor, array or lists; or one row of them.
        attention_mask: (B, T); zeros mark padding, on either side, which is not read. Without a mask, padding tokens
            are taken for padding, as in both libraries.
        stop: FlexGen's end token, or several; `eos_token_id` is transformers' name for the same.
        pad_token_id: the padding token; else the tokenizer's, where it has one that is nothing else; else rows are
            filled up with an end token, or 0, and no token is taken for padding.
        num_return_sequences: answers per prompt, in neighbouring rows.
        num_beams: 1; there is no beam search here.

    Returns:
        (B * num_return_sequences, T + longest answer), of the kind of `input_ids`.

    Raises:
        RequestError: a prompt or a value cannot be served.
    """
    if num_beams != 1:
        raise RequestError(
            f"num_beams is {num_beams}; there is no beam search, which would fork and drop rows at every token; "
            "leave it out, or draw several answers with num_return_sequences",
            code="unsupported_parameter",
            param="num_beams",
        )
    rows = _rows(input_ids, "input_ids")
    stops = (*_ids(stop), *_ids(eos_token_id))
    ends = stops or llm.defaults.eos_token_ids
    padding = llm.tokenizer.pad_token_id if pad_token_id is None else pad_token_id
    if attention_mask is not None:
        prompts = _masked(rows, _rows(attention_mask, "attention_mask"))
    else:
        prompts = rows if padding in ends else [[token for token in row if token != padding] for row in rows]
    params = SamplingParams(
        n=num_return_sequences,
        max_tokens=max_new_tokens,
        min_tokens=min_new_tokens,
        temperature=temperature if do_sample else 0.0,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        bad_words=bad_words_ids,
        seed=seed,
        stop_token_ids=stops,
        ignore_eos=bool(stops),
    )
    outputs = llm.generate(prompts, params)
    answers = [[list(answer.token_ids) for answer in output.outputs] for output in outputs]
    longest = max(len(answer) for group in answers for answer in group)
    fill = padding if padding is not None else next(iter(ends), 0)
    filled = [
        row + answer + [fill] * (longest - len(answer))
        for row, group in zip(rows, answers, strict=True)
        for answer in group
    ]
    if isinstance(input_ids, Tensor):
        return torch.tensor(filled, dtype=input_ids.dtype, device=input_ids.device)
    if isinstance(input_ids, np.ndarray):
        return np.array(filled, dtype=input_ids.dtype)
    return filled


def _rows(ids: _AnyIds, name: str) -> list[list[int]]:
    """Returns the rows of a (B, T) tensor, array or list, or the one row of a (T,) one."""
    plain: list[Any] = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else list(ids)
    if not plain:
        raise RequestError(f"{name} is empty; expected at least one prompt", code="invalid_value", param=name)
    return [[int(token) for token in row] for row in ([plain] if isinstance(plain[0], Integral) else plain)]


def _masked(rows: list[list[int]], mask: list[list[int]]) -> list[list[int]]:
    """Returns what the mask leaves of each row."""
    if [len(row) for row in rows] != [len(row) for row in mask]:
        raise RequestError(
            "attention_mask and input_ids differ in shape; expected one number per token",
            code="invalid_value",
            param="attention_mask",
        )
    return [[token for token, kept in zip(*pair, strict=True) if kept] for pair in zip(rows, mask, strict=True)]


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
