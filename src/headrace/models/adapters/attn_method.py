"""GPT-J, CodeGen and GPT-Neo: attention is a method `_attn` of a module that does everything else itself."""

from __future__ import annotations

from types import MethodType

from torch import Tensor

from headrace.attention.rule import AttentionRule
from headrace.models.micro_batch import current
from headrace.models.transformers_api import ForeignModule

_SCALED = ("GPTJAttention", "CodeGenAttention")
_UNSCALED = ("GPTNeoSelfAttention",)


def adapt(module: ForeignModule) -> bool:
    """Takes over the attention of one of these modules; returns whether it was one."""
    name = type(module).__name__
    if name in _SCALED:
        module.headrace_rule = AttentionRule(scale=1 / float(module.scale_attn))
        module.headrace_layer = module.layer_idx
    elif name in _UNSCALED:
        window = module.config.window_size if module.attention_type == "local" else None
        module.headrace_rule = AttentionRule(scale=1.0, window=window, reach=window)
        module.headrace_layer = module.layer_id
    else:
        return False
    module._attn = MethodType(_attend, module)
    return True


def _attend(self: ForeignModule, query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, None]:
    """(1, H, T, D) each -> (1, H, T, D)."""
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    attended = current().attend(self.headrace_layer, queries.to(values.dtype), keys, values, self.headrace_rule)
    return attended.transpose(0, 1)[None], None
