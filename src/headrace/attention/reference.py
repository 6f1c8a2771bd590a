"""Attention as the definition says, one sequence at a time in fp32: the oracle of every other path."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headrace.attention.ragged import KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule


class ReferenceAttention:
    """See `AttentionBackend`."""

    def attend(self, query: Tensor, pages: KVPages, layout: RaggedLayout, rule: AttentionRule) -> Tensor:
        outputs = []
        for row, first in enumerate(layout.query_starts):
            start, length = int(layout.starts[row]), int(layout.lengths[row])
            positions = np.arange(start + length)
            if rule.num_seen is not None:
                positions = positions[positions > start - rule.num_seen]
            blocks = torch.from_numpy(layout.block_table[row, positions // layout.block_tokens])
            offsets = torch.from_numpy(positions % layout.block_tokens)
            keys, values = pages.numbers(
                pages.keys[blocks, :, offsets],
                None if pages.values is None else pages.values[blocks, :, offsets],
                query.shape[-1],
            )
            chunk = query[first : first + length]
            outputs.append(_attend_one(chunk, keys, values, start, torch.from_numpy(positions), rule))
        return torch.cat(outputs)


def _attend_one(
    query: Tensor, keys: Tensor, values: Tensor, start: int, key_positions: Tensor, rule: AttentionRule
) -> Tensor:
    """query (Q, H, D), keys (L, K, D) and values (L, K, V) in fp32 -> (Q, H, V)."""
    grouped = query.float().view(len(query), keys.shape[1], -1, query.shape[-1])
    scores = torch.einsum("qkgd,lkd->kgql", grouped, keys) * rule.scale
    query_positions = torch.arange(start, start + len(query))
    hidden = ~rule.visible(query_positions[:, None], key_positions[None, :])
    weights = rule.probabilities(scores[None], hidden[None, None, None], key_positions[None])[0]
    return torch.einsum("kgql,lkv->qkgv", weights, values).flatten(1, 2).to(query.dtype)
