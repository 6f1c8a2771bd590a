"""Who runs in the next sweep: continuous batching between sweeps, first come first served."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Tokens
from dataclasses import replace
from itertools import islice

from headrace.kv_cache.manager import KVCacheManager
from headrace.scheduler.draft import SweepDraft
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.sequence import FinishReason, Rejection, Sequence, Status
from headrace.scheduler.sweep import Chunk, Sweep


class Scheduler:
    """Makes sweeps from the sequences that were added, and takes back what came of them.

    Sequences run in the order of their arrival: whoever runs came before whoever waits. A sweep takes one token of
    every sequence that decodes, then chunks of the prompts that are under way, then new prompts, until its limits are
    reached, which are lower while more sequences wait than there is room for (`SweepLimits.filling_tokens`). Where all
    decode and room is left, tokens are computed that are guessed to follow (`SweepLimits.guessing_tokens`); the logits
    tell how many of them were right. When blocks run out, the youngest sequence that runs loses its own and returns to
    the front of those that wait; later its KV is moved up again from the tier below, or else computed again. The oldest
    always gets what it needs, so every sequence ends.

    Attributes:
        limits: bounds of the next sweep; may be replaced between sweeps.
        num_preemptions: how often a sequence lost its blocks.
        num_moved_down: how often its KV went down then.
        num_prefix_hit_tokens: tokens that were found in the cache instead of computed.
    """

    def __init__(
        self, cache: KVCacheManager, limits: SweepLimits, moves_down: Callable[[int], bool] = lambda num_tokens: True
    ) -> None:
        """Begins without sequences.

        Args:
            moves_down: whether moving the KV of so many tokens is better than computing it again, where the cache has
                room below; asked when a sequence loses its blocks.
        """
        self.limits = limits
        self.num_preemptions = 0
        self.num_moved_down = 0
        self.num_prefix_hit_tokens = 0
        self._cache = cache
        self._moves_down = moves_down
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()
        self._running: OrderedDict[int, Sequence] = OrderedDict()
        self._rejected: list[Rejection] = []
        self._num_sweeps = 0
        self._draft: SweepDraft | None = None
        self._sheds = False

    @property
    def num_waiting(self) -> int:
        """Number of sequences that hold no blocks."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Number of sequences that hold blocks."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait for its turn; one that the cache can never hold is rejected instead."""
        assert sequence.sequence_id not in self._running and sequence.sequence_id not in self._waiting
        if not self._reject_if_too_long(sequence):
            self._waiting[sequence.sequence_id] = sequence

    def next_sweep(self) -> Sweep | None:
        """Returns what runs next, to be committed or abandoned before the next call; None if nothing is left to run."""
        assert self._draft is None, "the sweep before was neither committed nor abandoned"
        draft = self._begin_draft()
        if self._sheds and len(self._running) > 1:
            self._preempt(draft, next(reversed(self._running.values())))
        self._sheds = False
        self._continue_running(draft)
        self._admit_waiting(draft)
        sweep = draft.build(self._num_sweeps)
        if sweep is not None:
            self._draft = draft
            self._num_sweeps += 1
        return sweep

    def commit(self, sweep: Sweep, sampled: Mapping[int, Tokens[int]]) -> list[Sequence]:
        """Takes over the results of a sweep and returns the sequences that it finished.

        Args:
            sampled: the new tokens of every sequence that has a chunk with `samples`, by sequence_id: one, and one more
                for each token of a guess that was right.
        """
        draft = self._end_draft(sweep)
        sampling: list[tuple[Sequence, Tokens[int]]] = []
        for sequence, stop in draft.stops.items():
            num_computed = stop
            if stop >= sequence.num_tokens:
                tokens = sampled[sequence.sequence_id]
                sampling.append((sequence, tokens))
                sequence.guessing.learn(stop - sequence.num_tokens, len(tokens) - 1)
                num_computed = sequence.num_tokens - 1 + len(tokens)
            self._cache.commit(sequence.sequence_id, num_computed)
            sequence.num_computed = num_computed
            sequence.num_scored = max(sequence.num_scored, num_computed)
        self.num_prefix_hit_tokens += draft.num_prefix_hit_tokens
        for sequence in draft.parked:
            sequence.num_moved_down += 1
            self.num_moved_down += 1
        for sequence, tokens in sampling:
            sequence.extend(tokens)
            if sequence.status is Status.FINISHED or self._reject_if_too_long(sequence):
                self._remove(sequence)
            elif sequence.num_before_restart is not None and sequence.num_before_restart < 0:
                self._remove(sequence)
                sequence.start_again()
                self._wait_again(sequence)
        return [sequence for sequence, _ in sampling if sequence.finish_reason is not None]

    def abandon(self, sweep: Sweep) -> None:
        """Forgets a sweep that failed: its sequences are as they were before it.

        Sequences that lost their blocks to it stay waiting; they only compute again, since nobody knows what of their
        KV has arrived below.
        """
        draft = self._end_draft(sweep)
        for sequence in reversed(draft.stops):
            self._cache.abandon(sequence.sequence_id)
            if sequence in draft.admitted:
                self._remove(sequence)
                self._wait_again(sequence)
        for sequence in draft.parked:
            self._cache.unpark(sequence.sequence_id)

    def drop_unused(self) -> list[list[int]]:
        """Forgets, between sweeps, the KV that no sequence uses; returns the blocks of each group that hold nothing."""
        assert self._draft is None, "blocks are dropped between sweeps"
        return self._cache.drop_unused()

    def run_one_less(self) -> bool:
        """Takes the blocks of the youngest sequence with the next sweep; from then on no more run than those before it.

        Returns:
            False if only one runs, or none: that goes on.
        """
        if len(self._running) < 2:
            return False
        self._sheds = True
        self.limits = replace(self.limits, max_num_seqs=min(self.limits.max_num_seqs, len(self._running) - 1))
        return True

    def stop_moving(self) -> None:
        """Moves no KV down any more, between sweeps; sequences whose KV is below compute it again."""
        assert self._draft is None, "moving ends between sweeps"
        self._cache.close_parking()

    def finish(self, sequence_id: int, reason: FinishReason) -> None:
        """Ends a sequence from outside, between sweeps: a stop string was found, or nobody wants it any more."""
        assert self._draft is None, "a sequence ends between sweeps"
        sequence = self._waiting.pop(sequence_id, None)
        if sequence is None:
            sequence = self._running[sequence_id]
            self._remove(sequence)
        self._cache.unpark(sequence_id)
        sequence.finish(reason)

    def take_rejected(self) -> list[Rejection]:
        """Returns the sequences that were rejected since the last call."""
        rejected, self._rejected = self._rejected, []
        return rejected

    def _begin_draft(self) -> SweepDraft:
        limits = self._limits_now()
        decoding: dict[Sequence, tuple[int, ...]] = {}
        num_wanted = 0
        for sequence in self._running.values():
            num_uncomputed = sequence.num_uncomputed
            num_wanted += num_uncomputed
            if num_uncomputed == 1:
                decoding[sequence] = ()
        if len(decoding) == len(self._running) and not self._waiting:
            num_wanted += self._guess(decoding)
        for sequence in islice(self._waiting.values(), max(0, limits.max_num_seqs - len(self._running))):
            if num_wanted >= limits.max_num_batched_tokens:
                break
            num_wanted += sequence.num_tokens
        return SweepDraft(limits, decoding=decoding, num_wanted=num_wanted)

    def _guess(self, decoding: dict[Sequence, tuple[int, ...]]) -> int:
        """Guesses what follows each sequence, where a sweep has room that nothing else fills; returns the tokens."""
        limits = self.limits
        room = min(limits.guessing_tokens, limits.max_num_batched_tokens, limits.max_num_logits) - len(decoding)
        num_guessed = 0
        for index, sequence in enumerate(decoding):
            share = -(-(room - num_guessed) // (len(decoding) - index))
            if share < 1:
                break
            if not sequence.guesses:
                continue
            most = min(
                share,
                share if sequence.num_before_restart is None else sequence.num_before_restart,
                sequence.max_tokens - sequence.num_output_tokens - 1,
                self._cache.room_to_guess(sequence.sequence_id),
            )
            decoding[sequence] = sequence.guessing.guess(sequence.token_ids, most)
            num_guessed += len(decoding[sequence])
        return num_guessed

    def _limits_now(self) -> SweepLimits:
        """Spreads prompts over sweeps of decoding sequences, unless all that wait can be let in at once.

        Sweeps that read weights would else compute long at prompts, and then wait long for weights at few tokens each.
        At the end of a job nothing is won by it: the sooner the last sequences begin, the sooner they end.
        """
        limits = self.limits
        if limits.filling_tokens >= limits.max_num_batched_tokens or not self._keeps_some_waiting():
            return limits
        return replace(limits, max_num_batched_tokens=limits.filling_tokens)

    def _keeps_some_waiting(self) -> bool:
        """Whether more sequences wait than there is room for."""
        if len(self._waiting) > self.limits.max_num_seqs - len(self._running):
            return True
        room = self._cache.available_tokens
        return any((room := room - sequence.num_tokens) < 0 for sequence in self._waiting.values())

    def _end_draft(self, sweep: Sweep) -> SweepDraft:
        draft, self._draft = self._draft, None
        assert draft is not None and sweep.sweep_id == self._num_sweeps - 1, f"sweep {sweep.sweep_id} is not under way"
        return draft

    def _continue_running(self, draft: SweepDraft) -> None:
        """Adds those that run, oldest first; where blocks are lacking, the youngest lose theirs to the older ones."""
        for sequence in list(self._running.values())[: self.limits.max_num_seqs]:
            while sequence.status is Status.RUNNING and not self._add_chunks(draft, sequence):
                youngest = next(reversed(self._running.values()))
                if youngest is sequence:
                    break  # it keeps what it has and waits for a block
                self._preempt(draft, youngest)

    def _admit_waiting(self, draft: SweepDraft) -> None:
        """Adds those that wait, first come first served, until one of them has to go on waiting."""
        while self._waiting and len(self._running) < self.limits.max_num_seqs and draft.has_room_to_admit:
            sequence = next(iter(self._waiting.values()))
            if not self._admit(draft, sequence):
                break

    def _admit(self, draft: SweepDraft, sequence: Sequence) -> bool:
        """Adds a sequence if its known tokens fit into the cache; whoever is alone is always admitted."""
        salt = f"{sequence.salt} scored {sequence.sequence_id}" if sequence.num_to_score else sequence.salt
        hit = self._cache.begin(sequence.sequence_id, sequence.token_ids, salt)
        # Those that run need a block every `block_tokens` sweeps. Room for their next few sweeps is left, or else the
        # newcomer would soon be preempted for them.
        num_spare = -(-len(self._running) // 4)
        if self._running and not self._cache.can_admit(sequence.sequence_id, sequence.num_tokens, num_spare=num_spare):
            self._cache.free(sequence.sequence_id)
            return False
        self._running[sequence.sequence_id] = self._waiting.pop(sequence.sequence_id)
        sequence.status = Status.RUNNING
        sequence.num_computed = hit.num_tokens
        if not sequence.num_preemptions:
            sequence.num_prefix_hit_tokens = hit.num_tokens
        draft.admit(sequence, hit, self._cache.bring_up(sequence.sequence_id, sequence.token_ids))
        was_added = self._add_chunks(draft, sequence)
        assert was_added, f"sequence {sequence.sequence_id} was admitted without a block for its first token"
        return True

    def _add_chunks(self, draft: SweepDraft, sequence: Sequence) -> bool:
        """Adds as many of a sequence's tokens as the sweep and the blocks allow.

        Returns:
            False if there was room in the sweep but no block for even one token.
        """
        guess = draft.guess_for(sequence)
        token_ids = [*sequence.token_ids, *guess] if guess else sequence.token_ids
        start, end = sequence.num_computed, len(token_ids)
        limit = min(start + draft.room_for(sequence), end)
        while start < (reach := draft.reach(sequence, start, limit)):
            extended = self._cache.extend(sequence.sequence_id, token_ids, reach)
            if extended is None:
                return start > sequence.num_computed
            stop, block_tables = extended
            draft.add(
                sequence,
                Chunk(
                    sequence_id=sequence.sequence_id,
                    start=start,
                    token_ids=tuple(token_ids[start:stop]),
                    block_tables=block_tables,
                    samples=stop == end,
                    num_at_once=sequence.num_at_once,
                    num_guessed=len(guess),
                    scores=start < sequence.num_to_score,
                ),
            )
            start = stop
        return True

    def _preempt(self, draft: SweepDraft, sequence: Sequence) -> None:
        """Takes the blocks of the youngest sequence that runs; their content goes down where that is better."""
        if self._moves_down(sequence.num_computed) and self._cache.can_park(sequence.sequence_id):
            draft.park(sequence, self._cache.park(sequence.sequence_id))
        self._remove(sequence)
        self._wait_again(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1

    def _wait_again(self, sequence: Sequence) -> None:
        """Makes a sequence that ran until now, as the youngest, the first of those that wait."""
        self._waiting[sequence.sequence_id] = sequence
        self._waiting.move_to_end(sequence.sequence_id, last=False)
        sequence.status = Status.WAITING
        sequence.num_computed = 0

    def _remove(self, sequence: Sequence) -> None:
        del self._running[sequence.sequence_id]
        self._cache.free(sequence.sequence_id)

    def _reject_if_too_long(self, sequence: Sequence) -> bool:
        capacity_tokens = self._cache.capacity_tokens
        if sequence.num_tokens <= capacity_tokens:
            return False
        sequence.status = Status.FINISHED
        self._rejected.append(
            Rejection(sequence=sequence, num_tokens=sequence.num_tokens, capacity_tokens=capacity_tokens)
        )
        return True
