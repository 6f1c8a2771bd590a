"""MPT computes attention inside its own forward, with ALiBi counted back from the last key."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor

from headrace.attention.rule import AttentionRule
from headrace.models.micro_batch import current
from headrace.models.transformers_api import ForeignModule, mpt_alibi


def adapt(module: ForeignModule) -> bool:
    """Takes over an `MptAttention`; returns whether it was one."""
    if type(module).__name__ != "MptAttention":
        return False
    # The bias of the key one before the last is -slope; softmax does not see that it is counted from elsewhere.
    slopes = -mpt_alibi(module.n_heads, 2, device=torch.device("cpu"))[:, 0, 0]
    module.headrace_rule = AttentionRule(scale=module.softmax_scale, slopes=slopes)
    module.forward = MethodType(_forward, module)
    return True


def _forward(self: ForeignModule, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
    """MptAttention.forward with its attention replaced; hidden_states (1, T, E)."""
    mixed = self.Wqkv(hidden_states)
    if self.clip_qkv:
        mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    query, key, value = mixed[0].unflatten(-1, (3, self.n_heads, self.head_dim)).unbind(1)
    attended = current().attend(self.layer_idx, query, key, value, self.headrace_rule)
    return self.out_proj(attended.reshape(hidden_states.shape)), None
