"""What comes behind the last keys and values of a model, for the tokens whose logits are wanted.

Of all other tokens nobody will look at what the last layers make of them. So the last layer that keeps anything runs
twice, if that is attention: for all tokens up to where their keys and values are stored, then for those wanted, as if
there were no others. Layers behind it, which look at each token by itself, run for those wanted. Of a prompt of 512
tokens all but one skip nearly a whole layer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from headrace.attention.ragged import RaggedLayout
from headrace.models.coroutine import acting_for
from headrace.models.engine_functions import EngineCache, MaskRule
from headrace.models.micro_batch import KVStored, LastTokens, MicroBatchContext, current
from headrace.schedule.steps import Point

LEAST_SAVED = 64
"""With fewer tokens that are not wanted, a layer takes as long as its weights take to be read."""


class _NotPerTokenError(Exception):
    """An argument is not known to have one part for each token."""


def for_wanted(layer: Callable[..., object], index: int, attends: bool) -> Callable[..., object]:
    """Returns what calls a layer, behind which no other keeps anything, right for the tokens whose logits are wanted.

    Args:
        attends: the layer keeps keys and values itself; otherwise it keeps nothing.
    """

    def call(*args: object, **kwargs: object) -> object:
        context, whole = current(), partial(layer, *args, **kwargs)
        num_tokens = context.token_ids.shape[1]
        wanted = context.wanted.at_least_one(num_tokens)
        if context.skipped_layers or num_tokens - len(wanted.tokens) < LEAST_SAVED:
            return whole()
        try:
            their_kwargs = {name: _of(value, wanted.tokens, num_tokens) for name, value in kwargs.items()}
            theirs = partial(layer, *(_of(value, wanted.tokens, num_tokens) for value in args), **their_kwargs)
        except _NotPerTokenError:
            return whole()
        if attends:
            with acting_for(replace(context, only_stores=True)), suppress(KVStored):
                return whole()
        with acting_for(_without_others(context, wanted, index)):
            result = theirs()
        hidden = args[0] if args else kwargs["hidden_states"]
        if isinstance(result, tuple):
            return _among(hidden, wanted.tokens, result[0]), *result[1:]
        return _among(hidden, wanted.tokens, result)

    return call


def _of(value: object, wanted: Tensor, num_tokens: int) -> object:
    """Returns what `value` is of the tokens `wanted` (R,)."""
    match value:
        case None | bool() | int() | float() | str() | EngineCache() | MaskRule():
            return value
        case Tensor() if value.shape[:2] == (1, num_tokens):
            return value[:, wanted]
        case tuple():
            return tuple(_of(part, wanted, num_tokens) for part in value)
        case _:
            raise _NotPerTokenError


def _among(hidden: object, wanted: Tensor, theirs: object) -> Tensor:
    """Returns `theirs` (1, R, E) in their places among all tokens, of which the others are of no use."""
    assert isinstance(hidden, Tensor) and isinstance(theirs, Tensor)
    everyone = hidden.to(theirs.dtype, copy=True)
    everyone[:, wanted] = theirs
    return everyone


def _without_others(context: MicroBatchContext, wanted: LastTokens, index: int) -> MicroBatchContext:
    """Returns the micro-batch of the tokens wanted alone, for a layer that has waited for its keys and values."""
    layouts = tuple(
        layout.of_last(wanted.counts, wanted.tokens) if isinstance(layout, RaggedLayout) else layout
        for layout in context.layouts
    )
    brought = {
        layer: (pages, layout.of_last(wanted.counts, wanted.tokens))
        for layer, (pages, layout) in context.brought.items()
    }
    return replace(
        context,
        token_ids=context.token_ids[:, wanted.tokens],
        positions=context.positions[:, wanted.tokens],
        wanted=LastTokens(counts=wanted.counts[wanted.counts > 0], tokens=torch.arange(len(wanted.tokens))),
        layouts=layouts,
        brought=brought,
        waits=context.waits - {Point("attention", index)},
        row_lengths=context.row_lengths[wanted.tokens.cpu().numpy()],
    )
