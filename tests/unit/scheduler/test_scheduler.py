from __future__ import annotations

import sys
from collections.abc import Sequence as Tokens

import pytest

from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.manager import KVCacheManager, PrefixHit
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.scheduler import Scheduler
from headrace.scheduler.sequence import Sequence, Status
from headrace.scheduler.sweep import Chunk, Sweep

FULL = KVGroup(group_id=0, layers=(0,), kind="full")
STATE = KVGroup(group_id=0, layers=(0,), kind="state")


def make_scheduler(
    *,
    num_blocks: int = 100,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 32,
    max_micro_batch_tokens: int = 32,
    num_micro_batches: int = 1,
    filling_tokens: int = sys.maxsize,
) -> Scheduler:
    cache = KVCacheManager([FULL], num_blocks=[num_blocks], block_tokens=4, snapshot_tokens=4)
    limits = SweepLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_micro_batch_tokens=max_micro_batch_tokens,
        num_micro_batches=num_micro_batches,
        filling_tokens=filling_tokens,
    )
    return Scheduler(cache, limits)


def add(scheduler: Scheduler, sequence_id: int, prompt: int | Tokens[int], max_tokens: int = 100) -> Sequence:
    """Adds a sequence; a prompt that is a number stands for so many tokens that no other prompt has."""
    prompt_ids = range(100 * sequence_id, 100 * sequence_id + prompt) if isinstance(prompt, int) else prompt
    sequence = Sequence(
        sequence_id=sequence_id, request_id=sequence_id, prompt_ids=tuple(prompt_ids), max_tokens=max_tokens
    )
    scheduler.add(sequence)
    return sequence


def next_sweep(scheduler: Scheduler) -> Sweep:
    sweep = scheduler.next_sweep()
    assert sweep is not None
    return sweep


def chunks(sweep: Sweep) -> list[Chunk]:
    return [chunk for micro_batch in sweep.micro_batches for chunk in micro_batch.chunks]


def spans(sweep: Sweep) -> list[list[tuple[int, int, int]]]:
    """Returns (sequence, start, stop) of every chunk, by micro-batch."""
    return [[(c.sequence_id, c.start, c.stop) for c in micro_batch.chunks] for micro_batch in sweep.micro_batches]


def run(scheduler: Scheduler, token_id: int = 9) -> list[list[tuple[int, int, int]]]:
    """Commits the next sweep with one and the same token for all, and returns its spans."""
    sweep = next_sweep(scheduler)
    scheduler.commit(sweep, {chunk.sequence_id: [token_id] for chunk in chunks(sweep) if chunk.samples})
    return spans(sweep)


def test_nothing_to_do_is_no_sweep() -> None:
    assert make_scheduler().next_sweep() is None


def test_prompts_run_whole_and_then_token_by_token() -> None:
    scheduler = make_scheduler()
    add(scheduler, 0, 5)
    add(scheduler, 1, 3)
    assert run(scheduler) == [[(0, 0, 5), (1, 0, 3)]]
    assert run(scheduler) == [[(0, 5, 6), (1, 3, 4)]]


def test_prompts_are_spread_while_more_wait_than_there_are_seats_for() -> None:
    scheduler = make_scheduler(max_num_seqs=3, filling_tokens=6)
    for sequence_id in range(4):
        add(scheduler, sequence_id, 4)
    assert run(scheduler) == [[(0, 0, 4), (1, 0, 2)]]
    assert run(scheduler) == [[(0, 4, 5), (1, 2, 4), (2, 0, 3)]]
    scheduler.finish(3, "cancelled")
    assert run(scheduler) == [[(0, 5, 6), (1, 4, 5), (2, 3, 4)]]
    add(scheduler, 4, 20)
    scheduler.finish(0, "cancelled")
    assert run(scheduler) == [[(1, 5, 6), (2, 4, 5), (4, 0, 20)]], "the last ones are let in at once"


def test_prompts_are_spread_while_more_wait_than_there_are_blocks_for() -> None:
    scheduler = make_scheduler(num_blocks=5, filling_tokens=6)
    for sequence_id in range(3):
        add(scheduler, sequence_id, 7)
    assert run(scheduler) == [[(0, 0, 6)]]
    scheduler.finish(2, "cancelled")
    assert run(scheduler) == [[(0, 6, 7), (1, 0, 7)]]


def test_a_long_prompt_runs_in_chunks_and_samples_with_the_last() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    sequence = add(scheduler, 0, 20)
    samples = []
    while not sequence.num_output_tokens:
        sweep = next_sweep(scheduler)
        samples += [chunk.samples for chunk in chunks(sweep)]
        scheduler.commit(sweep, {0: [9]})
    assert samples == [False, False, True]


def test_decoding_sequences_run_before_prompts_even_if_younger() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    add(scheduler, 0, 18)
    run(scheduler)
    scheduler.limits = SweepLimits(max_num_seqs=8, max_num_batched_tokens=12, max_micro_batch_tokens=12)
    add(scheduler, 1, 2)
    assert run(scheduler) == [[(0, 8, 18), (1, 0, 2)]]
    add(scheduler, 2, 30)
    assert run(scheduler) == [[(0, 18, 19), (1, 2, 3), (2, 0, 10)]]
    assert run(scheduler) == [[(0, 19, 20), (1, 3, 4), (2, 10, 20)]]


def test_whoever_reads_a_block_that_a_decoding_sequence_fills_runs_after_it() -> None:
    scheduler = make_scheduler()
    add(scheduler, 0, [1, 2, 3])
    run(scheduler, token_id=4)
    add(scheduler, 1, [1, 2, 3, 4, 5])
    sweep = next_sweep(scheduler)
    assert spans(sweep) == [[(0, 3, 4), (1, 4, 5)]]
    first, second = chunks(sweep)
    assert first.block_tables[0][0] == second.block_tables[0][0]


def test_a_prompt_is_cut_where_a_micro_batch_is_full() -> None:
    scheduler = make_scheduler(max_micro_batch_tokens=8)
    add(scheduler, 0, 6)
    add(scheduler, 1, 12)
    assert run(scheduler) == [[(0, 0, 6), (1, 0, 2)], [(1, 2, 10)], [(1, 10, 12)]]


def test_a_sweep_is_spread_evenly_over_its_micro_batches() -> None:
    scheduler = make_scheduler(num_micro_batches=2)
    for sequence_id in range(4):
        add(scheduler, sequence_id, 4)
    assert run(scheduler) == [[(0, 0, 4), (1, 0, 4)], [(2, 0, 4), (3, 0, 4)]]
    assert run(scheduler) == [[(0, 4, 5), (1, 4, 5)], [(2, 4, 5), (3, 4, 5)]]


def test_samples_of_one_prompt_compute_it_once() -> None:
    scheduler = make_scheduler()
    prompt = range(10)
    for sequence_id in range(3):
        add(scheduler, sequence_id, prompt)
    assert run(scheduler) == [[(0, 0, 10), (1, 8, 10), (2, 8, 10)]]
    assert scheduler.num_prefix_hit_tokens == 16


def test_sequences_of_different_salt_share_nothing() -> None:
    scheduler = make_scheduler()
    add(scheduler, 0, range(10))
    salted = Sequence(sequence_id=1, request_id=1, prompt_ids=tuple(range(10)), max_tokens=1, salt="adapter")
    scheduler.add(salted)
    assert run(scheduler) == [[(0, 0, 10), (1, 0, 10)]]


def test_no_more_sequences_run_than_may() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    add(scheduler, 0, 4, max_tokens=2)
    add(scheduler, 1, 4)
    assert run(scheduler) == [[(0, 0, 4)]]
    assert run(scheduler) == [[(0, 4, 5)]]
    assert run(scheduler) == [[(1, 0, 4)]]


def test_smaller_limits_keep_the_blocks_of_those_that_pause() -> None:
    scheduler = make_scheduler()
    for sequence_id in range(3):
        add(scheduler, sequence_id, 4)
    run(scheduler)
    scheduler.limits = SweepLimits(max_num_seqs=2, max_num_batched_tokens=32, max_micro_batch_tokens=32)
    assert run(scheduler) == [[(0, 4, 5), (1, 4, 5)]]
    assert (scheduler.num_running, scheduler.num_preemptions) == (3, 0)


def test_the_youngest_waits_for_a_block_rather_than_lose_its_own() -> None:
    scheduler = make_scheduler(num_blocks=5)
    old, young = add(scheduler, 0, 7, max_tokens=6), add(scheduler, 1, 7, max_tokens=6)
    run(scheduler)
    run(scheduler)
    assert run(scheduler) == [[(0, 8, 9)]]
    while old.finish_reason is None:
        run(scheduler)
    assert (young.num_preemptions, young.num_output_tokens) == (0, 2)
    assert run(scheduler) == [[(1, 8, 9)]]


def test_a_preempted_sequence_keeps_its_tokens_and_its_place() -> None:
    scheduler = make_scheduler(num_blocks=4)
    old, young, youngest = add(scheduler, 0, 7, max_tokens=8), add(scheduler, 1, 3), add(scheduler, 2, 3)
    while not scheduler.num_preemptions:
        run(scheduler)
    assert (young.status, young.num_preemptions, young.num_computed) == (Status.WAITING, 1, 0)
    assert young.num_output_tokens > 0
    while old.finish_reason is None:
        run(scheduler)
    assert [sequence_id for sequence_id, _, _ in run(scheduler)[0]] == [1, 2]
    assert young.num_computed > youngest.num_computed


def preempt(scheduler: Scheduler) -> tuple[Sequence, Sequence]:
    """Runs two sequences, with room below, until the younger one has lost its blocks."""
    scheduler._cache.open_parking([100])
    old, young = add(scheduler, 0, 7, max_tokens=8), add(scheduler, 1, 6)
    while not scheduler.num_preemptions:
        run(scheduler)
    return old, young


def test_a_sequence_whose_blocks_went_down_goes_on_where_it_was() -> None:
    scheduler = make_scheduler(num_blocks=5)
    old, young = preempt(scheduler)
    num_tokens = young.num_tokens
    while old.finish_reason is None:
        run(scheduler)
    sweep = next_sweep(scheduler)
    assert spans(sweep) == [[(1, num_tokens - 1, num_tokens)]]
    assert sweep.moves_up and not sweep.moves_down
    assert (scheduler.num_preemptions, scheduler.num_moved_down) == (1, 1)
    assert scheduler.num_prefix_hit_tokens == 0


def test_blocks_go_down_in_the_sweep_that_takes_them() -> None:
    scheduler = make_scheduler(num_blocks=5)
    scheduler._cache.open_parking([100])
    add(scheduler, 0, 7, max_tokens=8)
    young = add(scheduler, 1, 6)
    while not (sweep := next_sweep(scheduler)).moves_down:
        scheduler.commit(sweep, {chunk.sequence_id: [9] for chunk in chunks(sweep)})
    (chunk,) = chunks(sweep)
    assert young.status is Status.WAITING
    assert chunk.block_tables[0][-1] in {move.block for move in sweep.moves_down}
    scheduler.abandon(sweep)
    assert scheduler._cache._parked.find(1) is None, "nobody knows what an abandoned sweep has moved"
    run(scheduler)
    assert (scheduler.num_preemptions, scheduler.num_moved_down) == (1, 0)


def test_a_sequence_is_computed_again_where_that_is_better() -> None:
    scheduler = make_scheduler(num_blocks=5)
    scheduler._moves_down = lambda num_tokens: num_tokens > 1000
    preempt(scheduler)
    assert (scheduler.num_preemptions, scheduler.num_moved_down) == (1, 0)


def test_when_moving_stops_those_that_are_below_compute_again() -> None:
    scheduler = make_scheduler(num_blocks=5)
    old, young = preempt(scheduler)
    scheduler.stop_moving()
    while old.finish_reason is None:
        run(scheduler)
    ((span,),) = run(scheduler)
    assert span[0] == 1 and span[1] < young.num_tokens - 2


def test_a_sequence_that_ends_while_it_is_below_leaves_its_places() -> None:
    scheduler = make_scheduler(num_blocks=5)
    _, young = preempt(scheduler)
    scheduler.finish(young.sequence_id, "cancelled")
    assert scheduler._cache._parked.find(young.sequence_id) is None
    scheduler._cache.check_integrity()


def test_one_sequence_less_runs_from_the_next_sweep_on() -> None:
    scheduler = make_scheduler()
    scheduler._cache.open_parking([100])
    for sequence_id in range(3):
        add(scheduler, sequence_id, 4)
    run(scheduler)
    assert scheduler.run_one_less()
    sweep = next_sweep(scheduler)
    assert spans(sweep) == [[(0, 4, 5), (1, 4, 5)]] and len(sweep.moves_down) == 1
    scheduler.commit(sweep, {0: [9], 1: [9]})
    assert run(scheduler) == [[(0, 5, 6), (1, 5, 6)]]
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_moved_down) == (2, 1, 1)
    assert scheduler.limits.max_num_seqs == 2


def test_the_only_sequence_goes_on() -> None:
    scheduler = make_scheduler()
    add(scheduler, 0, 4)
    run(scheduler)
    assert not scheduler.run_one_less()
    assert run(scheduler) == [[(0, 4, 5)]]


def test_blocks_that_no_sequence_uses_are_dropped_on_demand() -> None:
    scheduler = make_scheduler(num_blocks=10)
    add(scheduler, 0, 8, max_tokens=1)
    add(scheduler, 1, 8)
    run(scheduler)
    (free,) = scheduler.drop_unused()
    assert len(free) == 8
    assert scheduler._cache.pools[0].num_free == 8


def test_without_a_slot_for_its_state_a_sequence_waits_and_does_not_start_again() -> None:
    cache = KVCacheManager([STATE], num_blocks=[3], block_tokens=4, snapshot_tokens=4, enable_prefix_caching=False)
    scheduler = Scheduler(cache, SweepLimits(max_num_seqs=8, max_num_batched_tokens=32, max_micro_batch_tokens=32))
    for sequence_id in range(2):
        add(scheduler, sequence_id, 3, max_tokens=3)
    while scheduler.num_running or scheduler.num_waiting:
        run(scheduler)
    assert scheduler.num_preemptions == 0


def test_a_prompt_that_can_never_fit_is_rejected_with_what_would_fit() -> None:
    scheduler = make_scheduler(num_blocks=3)
    sequence = add(scheduler, 0, 13)
    (rejection,) = scheduler.take_rejected()
    assert (rejection.sequence, rejection.num_tokens, rejection.capacity_tokens) == (sequence, 13, 12)
    assert scheduler.next_sweep() is None
    assert scheduler.take_rejected() == []


def test_a_sequence_that_outgrows_the_cache_is_rejected_and_the_others_go_on() -> None:
    scheduler = make_scheduler(num_blocks=3)
    growing = add(scheduler, 0, 11)
    other = add(scheduler, 1, 5, max_tokens=2)
    while not (rejections := scheduler.take_rejected()):
        run(scheduler)
    assert rejections[0].sequence is growing and growing.num_tokens == 13
    assert growing.status is Status.FINISHED and growing.finish_reason is None
    while other.finish_reason is None:
        run(scheduler)


def test_an_abandoned_sweep_can_be_made_again() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    for sequence_id in range(3):
        add(scheduler, sequence_id, 5)
    run(scheduler)
    sweep = next_sweep(scheduler)
    scheduler.abandon(sweep)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    again = next_sweep(scheduler)
    assert (spans(again), again.sweep_id) == (spans(sweep), sweep.sweep_id + 1)


def test_a_sweep_is_committed_or_abandoned_before_the_next() -> None:
    scheduler = make_scheduler()
    add(scheduler, 0, 5)
    next_sweep(scheduler)
    with pytest.raises(AssertionError, match="neither committed nor abandoned"):
        scheduler.next_sweep()


def test_a_sequence_can_be_ended_while_it_waits_or_runs() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    running, waiting = add(scheduler, 0, 5), add(scheduler, 1, 5)
    run(scheduler)
    scheduler.finish(1, "cancelled")
    scheduler.finish(0, "stop")
    assert (running.finish_reason, waiting.finish_reason) == ("stop", "cancelled")
    assert scheduler.next_sweep() is None


class CountingCache(KVCacheManager):
    """Counts how often a sequence asks to begin."""

    num_asked = 0

    def begin(self, sequence_id: int, token_ids: Tokens[int], salt: str = "") -> PrefixHit:
        self.num_asked += 1
        return super().begin(sequence_id, token_ids, salt)


def test_of_those_that_wait_for_blocks_only_the_first_asks() -> None:
    cache = CountingCache([FULL], num_blocks=[4], block_tokens=4, snapshot_tokens=4)
    limits = SweepLimits(max_num_seqs=1000, max_num_batched_tokens=32, max_micro_batch_tokens=32)
    scheduler = Scheduler(cache, limits)
    for sequence_id in range(1000):
        add(scheduler, sequence_id, 9)
    run(scheduler)
    before = cache.num_asked
    run(scheduler)
    assert (scheduler.num_waiting, cache.num_asked - before) == (999, 1)
