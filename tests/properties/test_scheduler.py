"""Whatever is added, cancelled, preempted or abandoned: every token reads its own sequence, and every sequence ends."""

from __future__ import annotations

import sys

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.kv_cache.manager import KVCacheManager
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.scheduler import Scheduler
from headrace.scheduler.sequence import Sequence, Status
from headrace.scheduler.sweep import Sweep
from tests.properties.toy_model import CACHES, ToyModel

TOKENS = st.integers(0, 2)  # few, so that sequences agree by chance
STOP = 2


def make_limits(*, max_num_seqs: int, num_spare_logits: int, **others: int) -> SweepLimits:
    return SweepLimits(max_num_seqs=max_num_seqs, max_num_logits=max_num_seqs + num_spare_logits, **others)


LIMITS = st.builds(
    make_limits,
    max_num_seqs=st.integers(1, 6),
    num_spare_logits=st.sampled_from([0, 1, 3, 100]),
    guessing_tokens=st.sampled_from([0, 5, 12, 100]),
    max_num_batched_tokens=st.integers(1, 40),
    filling_tokens=st.one_of(st.integers(1, 40), st.just(sys.maxsize)),
    max_micro_batch_tokens=st.integers(1, 20),
    num_micro_batches=st.integers(1, 3),
)


class SchedulerMachine(RuleBasedStateMachine):
    """A scheduler, the cache it works with, and a toy model that runs its sweeps."""

    sequences: Bundle[Sequence] = Bundle("sequences")

    @initialize(
        cache=st.sampled_from(sorted(CACHES)),
        block_tokens=st.sampled_from([1, 2, 4, 8, 8]),
        num_blocks=st.lists(st.integers(2, 24), min_size=3, max_size=3),
        limits=LIMITS,
        enable_prefix_caching=st.sampled_from([True, True, True, False]),
        num_places=st.sampled_from([0, 3, 12, 100]),
        moved_tokens=st.sampled_from([1, 1, 6]),
    )
    def start(
        self,
        cache: str,
        block_tokens: int,
        num_blocks: list[int],
        limits: SweepLimits,
        enable_prefix_caching: bool,
        num_places: int,
        moved_tokens: int,
    ) -> None:
        groups = CACHES[cache]
        pools = num_blocks[: len(groups)]
        self.cache = KVCacheManager(
            groups,
            num_blocks=pools,
            block_tokens=block_tokens,
            snapshot_tokens=2 * block_tokens,
            enable_prefix_caching=enable_prefix_caching,
        )
        self.cache.open_parking([num_places] * len(groups))
        self.model = ToyModel(groups, pools, block_tokens)
        self.scheduler = Scheduler(self.cache, limits, lambda num_tokens: num_tokens >= moved_tokens)
        self.alive: dict[int, Sequence] = {}
        self.num_added = 0
        self.num_sampled = 0
        self.scored: dict[int, set[int]] = {}

    @rule(
        prompt=st.lists(TOKENS, min_size=1, max_size=30),
        num_samples=st.integers(1, 3),
        max_tokens=st.integers(1, 12),
        min_tokens=st.integers(0, 3),
        salt=st.sampled_from(["", "", "adapter"]),
        scores_prompt=st.sampled_from([False, False, True]),
        target=sequences,
    )
    def add_new(
        self, prompt: list[int], num_samples: int, max_tokens: int, min_tokens: int, salt: str, scores_prompt: bool
    ) -> Sequence:
        return self._add(prompt, num_samples, max_tokens, min_tokens, salt, scores_prompt)

    @rule(
        earlier=sequences,
        num_kept=st.integers(1, 30),
        suffix=st.lists(TOKENS, max_size=8),
        max_tokens=st.integers(1, 12),
        target=sequences,
    )
    def add_with_known_prefix(self, earlier: Sequence, num_kept: int, suffix: list[int], max_tokens: int) -> Sequence:
        return self._add([*earlier.token_ids[:num_kept], *suffix], 1, max_tokens, 0, earlier.salt)

    def _add(
        self,
        prompt: list[int],
        num_samples: int,
        max_tokens: int,
        min_tokens: int,
        salt: str,
        scores_prompt: bool = False,
    ) -> Sequence:
        for sample_index in range(num_samples):
            sequence = Sequence(
                sequence_id=self.num_added,
                request_id=self.num_added - sample_index,
                sample_index=sample_index,
                prompt_ids=tuple(prompt),
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                stop_ids=frozenset({STOP}),
                salt=salt,
                scores_prompt=scores_prompt and sample_index == 0,
            )
            self.num_added += 1
            self.alive[sequence.sequence_id] = sequence
            self.scheduler.add(sequence)
        self._forget_rejected()
        return sequence

    @rule(limits=LIMITS)
    def replace_limits(self, limits: SweepLimits) -> None:
        self.scheduler.limits = limits

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = self.alive.pop(data.draw(st.sampled_from(sorted(self.alive))))
        self.scheduler.finish(sequence.sequence_id, "cancelled")
        assert sequence.finish_reason == "cancelled"

    @rule(draws=st.lists(TOKENS, min_size=1, max_size=6), times=st.integers(1, 4))
    def run(self, draws: list[int], times: int) -> None:
        for _ in range(times):
            self._run(draws)

    @rule()
    def drop_unused(self) -> None:
        for pool, free in zip(self.cache.pools, self.scheduler.drop_unused(), strict=True):
            assert len(free) == pool.num_free == pool.num_available

    @precondition(lambda self: self.alive)
    @rule()
    def run_one_less(self) -> None:
        num_running, num_preemptions = self.scheduler.num_running, self.scheduler.num_preemptions
        assert self.scheduler.run_one_less() == (num_running > 1)
        self._run([0, 1])
        if num_running > 1:
            assert self.scheduler.num_preemptions > num_preemptions
            assert self.scheduler.num_running < num_running

    @precondition(lambda self: self.num_added > 8)  # late, or nearly every run would go on without moves
    @rule()
    def stop_moving(self) -> None:
        self.scheduler.stop_moving()

    @precondition(lambda self: self.alive)
    @rule()
    def fail(self) -> None:
        before = {number: (list(s.token_ids), s.num_computed, s.num_preemptions) for number, s in self.alive.items()}
        sweep = self._next_sweep()
        assert sweep is not None
        self.model.fail(sweep)
        self.scheduler.abandon(sweep)
        for number, (token_ids, num_computed, num_preemptions) in before.items():
            sequence = self.alive[number]
            assert sequence.token_ids == token_ids
            assert sequence.num_computed == (num_computed if sequence.num_preemptions == num_preemptions else 0)

    def _run(self, draws: list[int]) -> None:
        sweep = self._next_sweep()
        if sweep is None:
            assert not self.alive
            return
        self.model.run(sweep, {number: sequence.token_ids for number, sequence in self.alive.items()})
        sampled = {}
        for micro_batch in sweep.micro_batches:
            for chunk in micro_batch.chunks:
                if chunk.scores:
                    self.scored.setdefault(chunk.sequence_id, set()).update(range(chunk.start, chunk.stop))
                if chunk.samples:
                    self.num_sampled += 1
                    drawn, num_right = draws[self.num_sampled % len(draws)], self.num_sampled % (1 + chunk.num_guessed)
                    sampled[chunk.sequence_id] = [*chunk.guess[:num_right], drawn]
        before = {number: sequence.num_output_tokens for number, sequence in self.alive.items()}
        for sequence in self.scheduler.commit(sweep, sampled):
            assert sequence.finish_reason in ("stop", "length")
            assert (sequence.finish_reason == "stop") == (sequence.stop_token == STOP)
            assert sequence.num_output_tokens <= sequence.max_tokens
            del self.alive[sequence.sequence_id]
        for number, sequence in self.alive.items():
            assert sequence.num_output_tokens == before[number] + len(sampled.get(number, ()))
            assert sequence.finish_reason is None
            if sequence.scores_prompt and sequence.num_output_tokens:
                assert self.scored.get(number, set()) >= set(range(len(sequence.prompt_ids) - 1))
        self._forget_rejected()

    def _next_sweep(self) -> Sweep | None:
        oldest = min((s for s in self.alive.values()), key=lambda s: s.sequence_id, default=None)
        sweep = self.scheduler.next_sweep()
        if sweep is None:
            return None
        limits = self.scheduler.limits
        chunks = [chunk for micro_batch in sweep.micro_batches for chunk in micro_batch.chunks]
        assert sweep.num_tokens <= limits.max_num_batched_tokens
        assert all(0 < micro_batch.num_tokens <= limits.max_micro_batch_tokens for micro_batch in sweep.micro_batches)
        assert len({chunk.sequence_id for chunk in chunks}) <= limits.max_num_seqs
        assert sum(chunk.num_logits for chunk in chunks) <= limits.max_num_logits
        assert sum(chunk.num_guessed for chunk in chunks) <= limits.guessing_tokens
        assert oldest is not None and oldest.sequence_id in {chunk.sequence_id for chunk in chunks}
        next_start = {number: sequence.num_computed for number, sequence in self.alive.items()}
        for chunk in chunks:
            assert chunk.start == next_start[chunk.sequence_id], "the chunks of a sequence follow one another"
            next_start[chunk.sequence_id] = chunk.stop
            assert chunk.samples == (chunk.stop - chunk.num_guessed == self.alive[chunk.sequence_id].num_tokens)
            assert chunk.samples or not chunk.num_guessed
        return sweep

    def _forget_rejected(self) -> None:
        for rejection in self.scheduler.take_rejected():
            assert rejection.num_tokens > rejection.capacity_tokens == self.cache.capacity_tokens
            assert rejection.sequence.status is Status.FINISHED and rejection.sequence.finish_reason is None
            del self.alive[rejection.sequence.sequence_id]

    @invariant()
    def everything_adds_up(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check_integrity()
        assert self.scheduler.num_waiting + self.scheduler.num_running == len(self.alive)
        running = [number for number, sequence in self.alive.items() if sequence.status is Status.RUNNING]
        waiting = [number for number, sequence in self.alive.items() if sequence.status is Status.WAITING]
        assert max(running, default=-1) < min(waiting, default=self.num_added), "whoever runs came first"

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        num_sweeps = 0
        most = 1 + sum(len(s.prompt_ids) + s.max_tokens for s in self.alive.values())
        while self.alive:
            self._run([0, 1])
            num_sweeps += 1
            assert num_sweeps <= most, "the oldest sequence gains a token in every sweep"
        self.cache.check_integrity()
        assert all(pool.num_available == pool.num_blocks for pool in self.cache.pools), "blocks without an owner"


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(stateful_step_count=40)
