"""Multi-head latent attention (DeepSeek-V2/V3) on compressed pages, decoded in the absorbed form.

The reference expands the latents of the whole context to keys and values for every new token. Here a page keeps, per
token, the latent c (rank numbers) and the rotary key r, shared by all heads. With kv_b_proj split into W_K and W_V,

    q . k = q_nope . (W_K c) + q_rot . r = (q_nope W_K) . c + q_rot . r        out = sum p (W_V c) = W_V (sum p c)

so that attention runs on [c, r] as its one KV head (DeepSeek-V2 paper, arXiv 2405.04434, section 2.1.2 and appendix C).
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor

from headrace.attention.rule import AttentionRule
from headrace.kernels.linear import linear
from headrace.models.micro_batch import current
from headrace.models.products import library_for
from headrace.models.transformers_api import ForeignModule

ATTENTION_NAME = "headrace_latent"
_CLASSES = ("DeepseekV2Attention", "DeepseekV3Attention")


def adapt(module: ForeignModule) -> bool:
    """Makes an MLA module hand over latents instead of expanded keys; returns whether it was one."""
    if type(module).__name__ not in _CLASSES:
        return False
    module.expand_kv = MethodType(_keep_latents, module)
    return True


def _keep_latents(self: ForeignModule, latents: Tensor, rotary_keys: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1, T, rank), (1, 1, T, rotary) -> keys (1, 1, T, rank + rotary), values (1, 1, T, rank)."""
    return torch.cat((latents, rotary_keys), dim=-1), latents


def latent_attention(
    module: ForeignModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (1, H, T, nope + rotary), key (1, 1, T, rank + rotary)."""
    num_heads, nope, rank = query.shape[1], module.qk_nope_head_dim, value.shape[-1]
    expansion = module.kv_b_proj.weight.view(num_heads, nope + module.v_head_dim, rank)
    to_keys, to_values = expansion[:, :nope], expansion[:, nope:]
    absorbed = _products(query[0, :, :, :nope], to_keys.transpose(1, 2))
    queries = torch.cat((absorbed, query[0, :, :, nope:]), dim=-1).transpose(0, 1)
    keys, rule = key[0].transpose(0, 1), AttentionRule(scale=scaling)
    attended = current().attend_latents(module.layer_idx, queries, keys, rank, rule)
    return _products(attended.transpose(0, 1), to_values).transpose(0, 1)[None], None


def _products(numbers: Tensor, weights: Tensor) -> Tensor:
    """(H, T, K), (H, N, K) -> (H, T, N): of each head its numbers by the transpose of its weights.

    By the library head after head, since torch adds up those of a single token in another order.
    """
    found = library_for(numbers.dtype, numbers.device)
    if found is None:
        return torch.bmm(numbers, weights.transpose(1, 2))
    heads = zip(numbers, weights, strict=True)
    return torch.stack([linear(found, of_head, [(weight, None)])[0] for of_head, weight in heads])
