"""How large a sweep may be."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepLimits:
    """Bounds of one sweep; they may be replaced between two sweeps.

    Attributes:
        max_num_seqs: sequences that run at a time.
        max_num_batched_tokens: tokens per sweep, over all of its micro-batches.
        max_micro_batch_tokens: tokens per micro-batch.
        num_micro_batches: micro-batches over which the tokens of a sweep are spread evenly; more of them where
            `max_micro_batch_tokens` asks for it, fewer where there is too little to run.
        max_micro_batch_blocks: KV blocks that the chunks of a micro-batch name in one group; at least those of the
            longest sequence.
        filling_tokens: the same as `max_num_batched_tokens`, while more sequences wait than there is room for: what is
            computed while a sweep's weights are read.
        max_num_logits: tokens per sweep whose logits are computed; at least `max_num_seqs`.
        guessing_tokens: tokens per sweep up to which guesses of what comes next may fill it.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_micro_batch_tokens: int
    num_micro_batches: int = 1
    max_micro_batch_blocks: int = sys.maxsize
    filling_tokens: int = sys.maxsize
    max_num_logits: int = sys.maxsize
    guessing_tokens: int = 0

    def __post_init__(self) -> None:
        assert min(self.max_num_seqs, self.max_num_batched_tokens, self.filling_tokens) > 0, (
            f"{self} would never run anything"
        )
        assert min(self.max_micro_batch_tokens, self.num_micro_batches) > 0, f"{self} would never run anything"
        assert self.max_num_logits >= self.max_num_seqs, f"{self} could not sample for all of its sequences"

    def micro_batch_tokens(self, num_tokens: int) -> int:
        """Returns at how many tokens a micro-batch is full in a sweep of about `num_tokens`."""
        share = -(-num_tokens // self.num_micro_batches)
        return max(1, min(share, self.max_micro_batch_tokens))
