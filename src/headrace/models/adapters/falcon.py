"""Falcon computes attention inside its own forward: rotary or ALiBi, one, some or all key heads."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor

from headrace.attention.rule import AttentionRule
from headrace.models.micro_batch import current
from headrace.models.transformers_api import ForeignModule, alibi_slopes, falcon_rotary


def adapt(module: ForeignModule) -> bool:
    """Takes over a `FalconAttention`; returns whether it was one."""
    if type(module).__name__ != "FalconAttention":
        return False
    slopes = None
    if module.config.alibi:
        # transformers multiplies slopes and positions in bfloat16, then scales with the scores: all exact here where
        # the scale is a power of two, as it is in every Falcon with ALiBi (64 numbers per head).
        slopes = (alibi_slopes(module.num_heads, torch.device("cpu")) * module.inv_norm_factor).bfloat16()
    module.headrace_rule = AttentionRule(scale=module.inv_norm_factor, slopes=slopes)
    module.forward = MethodType(_forward, module)
    return True


def _forward(
    self: ForeignModule,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: object,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """FalconAttention.forward with its attention replaced; hidden_states (1, T, E)."""
    query, key, value = (states.transpose(1, 2) for states in self._split_heads(self.query_key_value(hidden_states)))
    if self.new_decoder_architecture:  # every key head was repeated for each of its queries'
        repeats = self.num_heads // self.num_kv_heads
        key, value = key[:, ::repeats], value[:, ::repeats]
    if alibi is None:
        assert position_embeddings is not None
        query, key = falcon_rotary(query, key, *position_embeddings)
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    attended = current().attend(self.layer_idx, queries, keys, values, self.headrace_rule)
    return self.dense(attended.reshape(hidden_states.shape)), None
