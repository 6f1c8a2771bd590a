"""BLOOM computes attention inside its own forward, with ALiBi as a tensor over a whole batch's key positions."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor

from headrace.attention.rule import AttentionRule
from headrace.models.micro_batch import current
from headrace.models.transformers_api import ForeignModule, alibi_slopes


def adapt(module: ForeignModule) -> bool:
    """Takes over a `BloomAttention`; returns whether it was one."""
    if type(module).__name__ != "BloomAttention":
        return False
    module.headrace_slopes = alibi_slopes(module.num_heads, torch.device("cpu"))
    module.forward = MethodType(_forward, module)
    return True


def _forward(
    self: ForeignModule, hidden_states: Tensor, residual: Tensor, alibi: Tensor, attention_mask: object, **_: object
) -> tuple[Tensor, None]:
    """BloomAttention.forward with its attention replaced; hidden_states (1, T, E)."""
    query, key, value = (states[0].transpose(0, 1) for states in self._reshape(self.query_key_value(hidden_states)))
    slopes = self.headrace_slopes.to(query.device)
    rule = AttentionRule(scale=self.inv_norm_factor, slopes=slopes)
    attended = current().attend(self.layer_idx, query, key, value, rule)
    return residual + self.dense(attended.reshape(hidden_states.shape)), None
