"""A sweep as the scheduler hands it to the executor: who computes which tokens, and in which blocks their KV lies.

    Sweep ─┬─ moves down, then up      of whole blocks, between the tiers, before anything else
           ├─ copies                   within a tier, before the chunks
           └─ MicroBatch ── Chunk      one stretch of one sequence: a decoded token, or a piece of its prompt

Integers only. A chunk may read blocks that an earlier chunk of the same sweep writes, in the same micro-batch or one
before it: the executor keeps that order in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.kv_cache.blocks import BlockCopy
from headrace.kv_cache.parking import BlockMove

__all__ = ["BlockCopy", "BlockMove", "Chunk", "MicroBatch", "Sweep"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence, computed in this sweep.

    Attributes:
        sequence_id: whose tokens these are.
        start: position of the first token; KV of all positions before it that this group still reads is present.
        token_ids: the tokens at positions [start, stop).
        block_tables: one table for each KV group. `full` and `sliding`: the block of position p is entry
            p // block_tokens, -1 where no token will read it any more. `state`: (source slot, target slot); the source
            holds the state after `start` tokens, -1 the zero state; the target receives the state after `stop` tokens.
        num_at_once: leading tokens of the sequence that `generate` would compute at once, whichever these are.
        samples: whether a token is to be drawn after the last one: it is the last token the sequence knows.
        num_guessed: of the last tokens so many are a guess; a token is drawn before each of them, too.
        scores: whether the logits of all tokens are wanted.
    """

    sequence_id: int
    start: int
    token_ids: tuple[int, ...]
    block_tables: tuple[tuple[int, ...], ...]
    samples: bool
    num_at_once: int = 0
    num_guessed: int = 0
    scores: bool = False

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Number of tokens this chunk computes."""
        return len(self.token_ids)

    @property
    def guess(self) -> tuple[int, ...]:
        """The last tokens, those that are a guess."""
        return self.token_ids[len(self.token_ids) - self.num_guessed :]

    @property
    def num_logits(self) -> int:
        """Of how many of its last tokens the logits are wanted."""
        return self.num_tokens if self.scores else self.samples * (1 + self.num_guessed)

    @property
    def num_blocks(self) -> int:
        """Number of KV blocks that this chunk names, in the group where it names most."""
        return max(len(table) - table.count(-1) for table in self.block_tables)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Chunks that are packed into one unpadded tensor of tokens, in this order."""

    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens over all chunks."""
        return sum(len(chunk.token_ids) for chunk in self.chunks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """One pass of its micro-batches over all layers; committed or abandoned as a whole.

    Attributes:
        sweep_id: counts up from 0.
        micro_batches: at least one, none of them empty.
        copies: blocks to copy before the sweep starts.
        moves_down: blocks of sequences that lost them to this sweep, which may write them.
        moves_up: blocks of sequences that return, to be filled after all moves down, as those may be their own.
    """

    sweep_id: int
    micro_batches: tuple[MicroBatch, ...]
    copies: tuple[BlockCopy, ...]
    moves_down: tuple[BlockMove, ...] = ()
    moves_up: tuple[BlockMove, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Number of tokens over all micro-batches."""
        return sum(micro_batch.num_tokens for micro_batch in self.micro_batches)
