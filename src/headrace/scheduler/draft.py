"""A sweep in the making: what has been put into it, what room is left, and what to undo if it fails."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import chain

from headrace.kv_cache.manager import PrefixHit
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.sequence import Sequence
from headrace.scheduler.sweep import BlockMove, Chunk, MicroBatch, Sweep


class SweepDraft:
    """Takes chunks as one stream of tokens, which is cut wherever a micro-batch is full.

    Sequences that decode come first in the stream, whenever they are added: their tokens are set aside from the start.
    The others follow in the order in which they are added, so that each can read what those before it write.
    """

    def __init__(self, limits: SweepLimits, *, decoding: Mapping[Sequence, tuple[int, ...]], num_wanted: int) -> None:
        """Begins an empty sweep.

        Args:
            decoding: sequences that compute one token each, and what is guessed to follow it.
            num_wanted: tokens that all sequences together would like to compute.
        """
        num_set_aside = min(sum(1 + len(guess) for guess in decoding.values()), limits.max_num_batched_tokens)
        self._decoding = decoding
        self._num_left_to_decode = num_set_aside
        self._num_left_to_prefill = limits.max_num_batched_tokens - num_set_aside
        self._micro_batch_tokens = limits.micro_batch_tokens(min(num_wanted, limits.max_num_batched_tokens))
        self._micro_batch_blocks = limits.max_micro_batch_blocks
        self._counts_blocks = limits.max_micro_batch_blocks < sys.maxsize
        self._num_logits_left = limits.max_num_logits - sum(1 + len(guess) for guess in decoding.values())
        self._position = num_set_aside
        self._decodes: list[Chunk] = []
        self._prefills: list[Chunk] = []
        self.stops: dict[Sequence, int] = {}
        self.admitted: dict[Sequence, PrefixHit] = {}
        self.parked: dict[Sequence, tuple[BlockMove, ...]] = {}
        self.num_prefix_hit_tokens = 0
        self._moves_up: list[BlockMove] = []

    @property
    def has_room_to_admit(self) -> bool:
        """Whether a sequence can begin."""
        return self._num_left_to_prefill > 0 and self._num_logits_left > 0

    def guess_for(self, sequence: Sequence) -> tuple[int, ...]:
        """Returns what is guessed to follow the known tokens of a sequence, in the sweep's room."""
        guess = self._decoding.get(sequence, ())
        return guess[: max(0, min(self._num_left_to_decode, self._micro_batch_tokens) - 1)]

    def room_for(self, sequence: Sequence) -> int:
        """Returns how many tokens of a sequence the sweep takes in all."""
        if sequence in self._decoding:
            return min(1 + len(self._decoding[sequence]), self._num_left_to_decode)
        return self._num_left_to_prefill

    def reach(self, sequence: Sequence, start: int, limit: int) -> int:
        """Returns where a chunk of a sequence that begins at `start` ends, at `limit` at the latest.

        A micro-batch takes so many tokens, and a sweep the logits of so many: tokens of a prompt that is scored, and
        the last token that a sequence knows.
        """
        if sequence in self._decoding:
            return limit
        stop = min(limit, start + self._micro_batch_tokens - self._position % self._micro_batch_tokens)
        if start < sequence.num_to_score:
            return min(stop, start + self._num_logits_left)
        return stop - 1 if stop == sequence.num_tokens and self._num_logits_left < 1 else stop

    def park(self, sequence: Sequence, moves: tuple[BlockMove, ...]) -> None:
        """Notes that a sequence lost its blocks to this sweep, and where their content goes."""
        self.parked[sequence] = moves

    def admit(self, sequence: Sequence, hit: PrefixHit, moves_up: tuple[BlockMove, ...]) -> None:
        """Notes that a sequence begins to run in this sweep, after what the cache had of it, here and below."""
        self.admitted[sequence] = hit
        self._moves_up += moves_up
        self.num_prefix_hit_tokens += 0 if moves_up else hit.num_tokens

    def add(self, sequence: Sequence, chunk: Chunk) -> None:
        """Takes the next chunk of a sequence."""
        self.stops[sequence] = chunk.stop
        if sequence in self._decoding:
            self._decodes.append(chunk)
            self._num_left_to_decode -= chunk.num_tokens
        else:
            self._prefills.append(chunk)
            self._num_logits_left -= chunk.num_logits
            self._num_left_to_prefill -= chunk.num_tokens
            self._position += chunk.num_tokens

    def build(self, sweep_id: int) -> Sweep | None:
        """Returns the sweep; None if nothing was added."""
        micro_batches: list[list[Chunk]] = []
        room = room_in_blocks = 0
        for chunk in chain(self._decodes, self._prefills):
            num_tokens = chunk.num_tokens
            num_blocks = chunk.num_blocks if self._counts_blocks else 0
            if num_tokens > room or num_blocks > room_in_blocks:
                micro_batches.append([])
                room, room_in_blocks = self._micro_batch_tokens, self._micro_batch_blocks
            micro_batches[-1].append(chunk)
            room -= num_tokens
            room_in_blocks -= num_blocks
        if not micro_batches:
            assert not self.parked, "a sequence lost its blocks to nobody"
            return None
        return Sweep(
            sweep_id=sweep_id,
            micro_batches=tuple(MicroBatch(chunks=tuple(chunks)) for chunks in micro_batches),
            copies=tuple(copy for hit in self.admitted.values() for copy in hit.copies),
            moves_down=tuple(move for moves in self.parked.values() for move in moves),
            moves_up=tuple(self._moves_up),
        )
