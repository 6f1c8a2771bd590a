"""Rotary frequencies that depend on how long a row is (long-RoPE, dynamic NTK), for each row by itself.

transformers takes the largest position of a call for the length of all of it. So the tokens whose rows are of one
length go through the module's own code together, with one more position that says how long that is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor

from headrace.models.layer_table import LengthRule
from headrace.models.micro_batch import current
from headrace.models.transformers_api import ForeignModule

Turns = Tensor | tuple[Tensor, ...]
"""What such a module returns: cosines and sines (1, T, D), or one tensor of both."""


def rule_of(module: ForeignModule) -> LengthRule | None:
    """Returns how a rotary module depends on lengths; None where it does not, or is none."""
    kinds = getattr(module, "rope_type", None)
    if kinds is None:
        return None
    layer_types = kinds.keys() if isinstance(kinds, dict) else (None,)
    rules = {rule for rule in (_rule_of(module, layer_type) for layer_type in layer_types) if rule is not None}
    assert len(rules) <= 1, "rows are told apart by one rule"
    return next(iter(rules), None)


def adapt(module: ForeignModule) -> bool:
    """Takes over a rotary module that depends on lengths; returns whether it was one."""
    if rule_of(module) is None:
        return False
    module.forward = MethodType(_forward, module)
    return True


def _rule_of(module: ForeignModule, layer_type: str | None) -> LengthRule | None:
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    if kind == "longrope":
        parameters = module.config.rope_parameters
        parameters = parameters if layer_type is None else parameters[layer_type]
        return LengthRule(threshold=int(parameters["original_max_position_embeddings"]), each_length=False)
    if kind == "dynamic":
        return LengthRule(threshold=int(module.original_max_seq_len), each_length=True)
    return None


def _forward(self: ForeignModule, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Turns:
    """The module's own forward, position_ids (1, T), once for the rows of each length."""
    own: Callable[..., Turns] = type(self).forward
    named = {} if layer_type is None else {"layer_type": layer_type}
    rule = _rule_of(self, layer_type)
    if rule is None:
        return own(self, x, position_ids, **named)
    groups = current().by_length(rule)
    if not groups:  # only shapes are wanted
        shaped: Turns = inspect.unwrap(own)(self, x, position_ids, **named)
        return shaped
    parts: list[Turns] = []
    for length, tokens in groups:
        _forget(self, "" if layer_type is None else f"{layer_type}_")
        asked = torch.cat([position_ids[:, tokens], position_ids.new_full((1, 1), length - 1)], dim=1)
        parts.append(own(self, x, asked, **named))
    places = [tokens for _, tokens in groups]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if tensors:
        return _merge(tensors, places)
    return tuple(_merge(both, places) for both in zip(*parts, strict=True))


def _forget(module: ForeignModule, prefix: str) -> None:
    """Makes a module of dynamic NTK as it was before its first call: it keeps the frequencies of its longest one."""
    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    original = getattr(module, f"{prefix}original_inv_freq")
    setattr(module, f"{prefix}inv_freq", original.clone())


def _merge(parts: Sequence[Tensor], places: list[Tensor]) -> Tensor:
    """Puts tokens back where they were, without the last one of each part."""
    num_tokens = sum(len(tokens) for tokens in places)
    merged = parts[0].new_empty(1, num_tokens, *parts[0].shape[2:])
    for part, tokens in zip(parts, places, strict=True):
        merged[:, tokens] = part[:, :-1]
    return merged
