"""What a layer's attention scores are made of, beside queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Visibility = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query position, key position) -> may it be seen; index arithmetic that broadcasts."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionRule:
    """How one layer scores and masks; every layer of a model may have another one.

    Attributes:
        scale: factor on the products of queries and keys.
        window: a query at position p sees keys at positions > p - window; None: all before it.
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: (H,) one more logit per head that takes probability and gives no value (gpt-oss).
        slopes: (H,) ALiBi: slope * key position, in the slopes' dtype, is added to the scores.
        allowed: further restriction, as the model's own mask function states it.
        reach: positions that a query can see at all, its own included, where `allowed` bounds them.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    slopes: Tensor | None = None
    allowed: Visibility | None = None
    reach: int | None = None

    @property
    def num_seen(self) -> int | None:
        """How many of the last positions a query may see, its own included; None: all."""
        return self.window if self.reach is None else self.reach

    def visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Returns bool, broadcast over both: causal, inside the window, and allowed."""
        seen = key_positions <= query_positions
        if self.window is not None:
            seen = seen & (key_positions > query_positions - self.window)
        if self.allowed is not None:
            zero = torch.zeros((), dtype=torch.long, device=query_positions.device)
            seen = seen & self.allowed(zero, zero, query_positions, key_positions)
        return seen

    def probabilities(self, scores: Tensor, hidden: Tensor, key_positions: Tensor) -> Tensor:
        """Turns fp32 products into attention probabilities, in place where it can.

        Args:
            scores: (R, K, G, Q, L) fp32 products of queries and keys, already scaled.
            hidden: (R, 1, 1, Q, L) bool, true where a key must not be seen.
            key_positions: (R, L) positions of the keys.
        """
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.slopes is not None:
            heads = self.slopes.to(scores.device).view(1, *scores.shape[1:3], 1, 1)
            scores = scores.add_(heads * key_positions[:, None, None, None, :])
        scores = scores.masked_fill_(hidden, float("-inf"))
        if self.sinks is None:
            return torch.softmax(scores, dim=-1, out=scores)
        column = (
            self.sinks.to(scores.device, torch.float32).view(1, *scores.shape[1:3], 1, 1).expand(*scores.shape[:-1], 1)
        )
        return torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
