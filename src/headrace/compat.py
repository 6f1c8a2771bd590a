"""Generation in the spelling of FlexGen and of transformers, over an `LLM`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from headrace.errors import RequestError
from headrace.sampling.parameters import SamplingParams

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from headrace.engine.llm import LLM

    Ids = Tensor | npt.NDArray[object] | Sequence[Sequence[int]] | Sequence[int]

I = TypeVar("I", bound="Ids")


def generate(
    llm: LLM,
    input_ids: I,
    *,
    attention_mask: Ids | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_new_tokens: int = 32,
    min_new_tokens: int = 0,
    stop: int | Sequence[int] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    num_return_sequences: int = 1,
    seed: int | None = None,
) -> I:
    """Continues each prompt; returns prompts and answers together, as both libraries do.

    Where a row ends early, `pad_token_id` (else the first end token, else 0) fills it up to the longest one.

    Args:
        input_ids: (B, T) tensor, array or lists; or one row of them.
        attention_mask: (B, T); zeros mark padding, on either side, which is not read.
        stop: FlexGen's end token, or several; `eos_token_id` is transformers' name for the same.
        num_return_sequences: answers per prompt, in neighbouring rows.

    Returns:
        (B * num_return_sequences, T + longest answer), of the kind of `input_ids`.

    Raises:
        RequestError: a prompt or a value cannot be served.
    """
    rows = _rows(input_ids)
    prompts = rows if attention_mask is None else _without_padding(rows, _rows(attention_mask))
    stops = (*_ids(stop), *_ids(eos_token_id))
    params = SamplingParams(
        n=num_return_sequences,
        max_tokens=max_new_tokens,
        min_tokens=min_new_tokens,
        temperature=temperature if do_sample else 0.0,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop_token_ids=stops,
        ignore_eos=bool(stops),
    )
    outputs = llm.generate(prompts, params)
    answers = [[list(answer.token_ids) for answer in output.outputs] for output in outputs]
    longest = max(len(answer) for group in answers for answer in group)
    fill = next(iter((*_ids(pad_token_id), *stops, *llm.defaults.eos_token_ids)), 0)
    filled = [
        row + answer + [fill] * (longest - len(answer))
        for row, group in zip(rows, answers, strict=True)
        for answer in group
    ]
    return _like(input_ids, filled)


def _rows(ids: Ids) -> list[list[int]]:
    plain = ids.tolist() if hasattr(ids, "tolist") else [list(row) if isinstance(row, Sequence) else row for row in ids]
    if not plain:
        raise RequestError("input_ids is empty; expected at least one prompt", code="invalid_value", param="input_ids")
    return [plain] if isinstance(plain[0], int) else plain


def _without_padding(rows: list[list[int]], mask: list[list[int]]) -> list[list[int]]:
    return [[token for token, kept in zip(*pair, strict=True) if kept] for pair in zip(rows, mask, strict=True)]


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _like(ids: I, rows: list[list[int]]) -> I:
    """Returns `rows` as a tensor, an array or lists, whichever `ids` is."""
    if hasattr(ids, "new_tensor"):
        return ids.new_tensor(rows)  # type: ignore[no-any-return]
    if hasattr(ids, "dtype"):
        import numpy as np

        return np.asarray(rows, dtype=ids.dtype)  # type: ignore[return-value]
    return rows  # type: ignore[return-value]
