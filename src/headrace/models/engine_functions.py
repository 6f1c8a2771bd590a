"""What transformers calls instead of its own code: attention, masks and experts; and the cache that it is given.

Attention and experts are taken over through transformers' own registries, where an architecture uses them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.attention.rule import AttentionRule, Visibility
from headrace.models.adapters import latent
from headrace.models.micro_batch import current
from headrace.models.transformers_api import (
    AttentionInterface,
    AttentionMaskInterface,
    ExpertsInterface,
    ForeignModule,
    causal_mask_function,
)

ATTENTION_NAME = "headrace"
_CAUSAL: object = causal_mask_function


class EngineCache:
    """What models get as cache: it stores nothing, since attention and state adapters keep all memory themselves.

    A real object is needed: without one transformers guesses packed sequences from position ids.
    """

    is_compileable = False

    def __init__(self) -> None:
        self.layers: list[object] = []
        self.is_sliding: list[bool] = []
        self.is_linear: list[bool] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def has_previous_state(self, layer_idx: int | None = None) -> bool:
        return False

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return keys, values


class MaskRule(Tensor):
    """An empty tensor that carries a layer's mask rule through the model to its attention function."""

    allowed: Visibility | None
    window: int | None

    @staticmethod
    def carrying(allowed: Visibility | None, window: int | None) -> MaskRule:
        rule = torch.empty(0).as_subclass(MaskRule)
        rule.allowed, rule.window = allowed, window
        return rule

    def to(self, *_: object, **__: object) -> MaskRule:
        return self


def _engine_mask(*_: object, mask_function: Visibility, local_size: int | None = None, **__: object) -> MaskRule:
    """transformers' mask function: receives each kind of layer's rule as index arithmetic, and passes it on."""
    allowed = None if mask_function is _CAUSAL else mask_function
    return MaskRule.carrying(allowed, local_size)


def _engine_attention(
    module: ForeignModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, H, T, D), key and value (1, K, T, D) of the new tokens only."""
    rule = AttentionRule(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
        allowed=_beyond_window(attention_mask, sliding_window),
        reach=attention_mask.window if isinstance(attention_mask, MaskRule) else sliding_window,
    )
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    return current().attend(module.layer_idx, queries, keys, values, rule)[None], None


def _beyond_window(attention_mask: object, window: int | None) -> Visibility | None:
    """Returns what the layer's mask asks for beyond causality and the window that it states as a number."""
    if not isinstance(attention_mask, MaskRule):
        return None
    said_as_number = window is not None and attention_mask.window == window
    return None if said_as_number else attention_mask.allowed


def _engine_experts(module: ForeignModule, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> object:
    """transformers' experts function: hidden_states (T, E), the experts of each token and their weights (T, k)."""
    return current().mix_experts(module, hidden_states, top_k_index, top_k_weights)


AttentionInterface.register(ATTENTION_NAME, _engine_attention)
AttentionInterface.register(latent.ATTENTION_NAME, latent.latent_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _engine_mask)
AttentionMaskInterface.register(latent.ATTENTION_NAME, _engine_mask)
ExpertsInterface.register(ATTENTION_NAME, _engine_experts)
