from __future__ import annotations

import pytest

from headrace.kv_cache.blocks import BlockCopy
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.manager import KVCacheManager
from headrace.kv_cache.parking import BlockMove

FULL = KVGroup(group_id=0, layers=(0,), kind="full")
SLIDING = KVGroup(group_id=1, layers=(1,), kind="sliding", window=4)
STATE = KVGroup(group_id=1, layers=(1,), kind="state")
STATE_ALONE = KVGroup(group_id=0, layers=(0,), kind="state")
PROMPT = list(range(10))


def make_cache(*groups: KVGroup, num_blocks: int = 20, enable_prefix_caching: bool = True) -> KVCacheManager:
    return KVCacheManager(
        groups,
        num_blocks=[num_blocks] * len(groups),
        block_tokens=4,
        snapshot_tokens=8,
        enable_prefix_caching=enable_prefix_caching,
    )


def tables(cache: KVCacheManager, sequence_id: int, token_ids: list[int], limit: int) -> tuple[tuple[int, ...], ...]:
    extended = cache.extend(sequence_id, token_ids, limit)
    assert extended is not None and extended[0] == limit
    return extended[1]


def test_a_sequence_gets_the_blocks_its_chunk_needs() -> None:
    cache = make_cache(FULL)
    assert cache.begin(0, PROMPT).num_tokens == 0
    assert len(tables(cache, 0, PROMPT, 5)[0]) == 2
    assert len(tables(cache, 0, PROMPT, 10)[0]) == 3


def test_a_chunk_is_shorter_where_blocks_are_lacking() -> None:
    cache = make_cache(FULL, num_blocks=2)
    cache.begin(0, PROMPT)
    extended = cache.extend(0, PROMPT, 10)
    assert extended is not None and extended[0] == 8
    assert cache.extend(0, PROMPT, 10) is None
    cache.check_integrity()


def test_a_prefix_is_shared_within_the_sweep_that_computes_it() -> None:
    cache = make_cache(FULL)
    cache.begin(0, PROMPT)
    first = tables(cache, 0, PROMPT, 10)
    hit = cache.begin(1, PROMPT)
    assert (hit.num_tokens, hit.copies) == (8, ())
    assert tables(cache, 1, PROMPT, 10)[0][:2] == first[0][:2]


def test_a_prefix_is_found_after_its_sequence_is_gone() -> None:
    cache = make_cache(FULL)
    cache.begin(0, PROMPT)
    tables(cache, 0, PROMPT, 10)
    cache.commit(0)
    cache.free(0)
    assert cache.begin(1, PROMPT).num_tokens == 8


def test_part_of_a_block_is_copied_once_it_is_computed() -> None:
    cache = make_cache(FULL)
    cache.begin(0, PROMPT)
    source = tables(cache, 0, PROMPT, 10)[0][1]
    assert cache.begin(1, PROMPT[:7]).num_tokens == 4, "a block in the making cannot be copied"
    cache.commit(0)
    hit = cache.begin(2, [*PROMPT[:7], 99, 99])
    target = tables(cache, 2, [*PROMPT[:7], 99, 99], 8)[0][1]
    assert hit.num_tokens == 7
    assert hit.copies == (BlockCopy(group=0, source=source, target=target, num_tokens=3),)


def test_the_last_token_is_always_computed() -> None:
    cache = make_cache(FULL)
    cache.begin(0, PROMPT[:8])
    tables(cache, 0, PROMPT[:8], 8)
    cache.commit(0)
    assert cache.begin(1, PROMPT[:8]).num_tokens == 7


def test_two_that_computed_the_same_block_share_one_after_the_commit() -> None:
    cache = make_cache(FULL)
    for sequence_id in (0, 1):
        cache.begin(sequence_id, PROMPT)
    first, second = (tables(cache, sequence_id, PROMPT, 4)[0] for sequence_id in (0, 1))
    assert first != second
    for sequence_id in (0, 1):
        cache.commit(sequence_id)
    assert tables(cache, 1, PROMPT, 5)[0][0] == first[0]
    cache.check_integrity()


def test_an_abandoned_sweep_leaves_a_sequence_as_it_was() -> None:
    cache = make_cache(FULL, STATE)
    cache.begin(0, PROMPT)
    tables(cache, 0, PROMPT, 4)
    cache.commit(0)
    num_available = [pool.num_available for pool in cache.pools]
    before = tables(cache, 0, PROMPT, 8)
    cache.abandon(0)
    assert [pool.num_available for pool in cache.pools] == num_available
    assert tables(cache, 0, PROMPT, 8) == before
    assert cache.begin(1, PROMPT).num_tokens == 8
    cache.check_integrity()


def test_nothing_is_shared_with_an_abandoned_sweep() -> None:
    cache = make_cache(FULL)
    cache.begin(0, PROMPT)
    tables(cache, 0, PROMPT, 10)
    cache.abandon(0)
    assert cache.begin(1, PROMPT).num_tokens == 0


def test_what_an_abandoned_sweep_found_again_is_forgotten_from_its_end_on() -> None:
    cache = make_cache(FULL, STATE)
    cache.begin(0, PROMPT)
    tables(cache, 0, PROMPT, 8)
    cache.commit(0)
    cache.free(0)
    assert cache.begin(1, PROMPT[:8]).num_tokens == 0, "no state was kept to go on from"
    tables(cache, 1, PROMPT[:8], 4)
    tables(cache, 1, PROMPT[:8], 8)  # both blocks are there already
    cache.abandon(1)
    cache.free(1)
    assert [len(free) for free in cache.drop_unused()] == [20, 20]


def test_a_sliding_group_lets_go_of_what_no_token_will_read() -> None:
    cache = make_cache(FULL, SLIDING)
    cache.begin(0, PROMPT)
    assert -1 not in tables(cache, 0, PROMPT, 9)[1]
    cache.commit(0)
    full, sliding = tables(cache, 0, PROMPT, 10)
    assert -1 not in full
    assert sliding[0] == -1 and -1 not in sliding[1:]


def test_a_hit_needs_all_groups() -> None:
    cache = KVCacheManager([FULL, SLIDING], num_blocks=[20, 4], block_tokens=4, snapshot_tokens=8)
    for sequence_id, token_ids in enumerate([PROMPT, [77] * 14]):  # the second evicts the window of the first
        cache.begin(sequence_id, token_ids)
        tables(cache, sequence_id, token_ids, len(token_ids))
        cache.commit(sequence_id)
        cache.free(sequence_id)
    assert cache.begin(2, PROMPT).num_tokens == 0


def test_a_state_is_read_from_one_slot_and_written_to_another() -> None:
    cache = make_cache(STATE_ALONE)
    cache.begin(0, PROMPT)
    ((source, target),) = tables(cache, 0, PROMPT, 3)
    assert source == -1
    ((next_source, next_target),) = tables(cache, 0, PROMPT, 6)
    assert next_source == target != next_target
    cache.commit(0)
    assert tables(cache, 0, PROMPT, 8)[0][0] == next_target


def test_a_prefill_stops_where_a_state_is_kept() -> None:
    cache = make_cache(FULL, STATE)
    prompt = list(range(30))
    cache.begin(0, prompt)
    stops = []
    while not stops or stops[-1] < 30:
        extended = cache.extend(0, prompt, 30)
        assert extended is not None
        stops.append(extended[0])
    assert stops == [8, 16, 24, 28, 30]


def test_a_state_is_shared_only_where_it_was_kept() -> None:
    cache = make_cache(FULL, STATE)
    cache.begin(0, PROMPT)
    tables(cache, 0, PROMPT, 8)
    tables(cache, 0, PROMPT, 10)
    cache.commit(0)
    assert cache.begin(1, PROMPT).num_tokens == 8
    assert cache.begin(2, PROMPT[:8]).num_tokens == 0


def test_without_prefix_caching_nothing_is_shared() -> None:
    cache = make_cache(FULL, enable_prefix_caching=False)
    cache.begin(0, PROMPT)
    tables(cache, 0, PROMPT, 10)
    cache.commit(0)
    assert cache.begin(1, PROMPT).num_tokens == 0
    cache.free(0)
    assert cache.pools[0].num_free == 20


def test_admission_leaves_blocks_to_those_that_run() -> None:
    cache = make_cache(FULL, num_blocks=4)
    cache.begin(0, PROMPT)
    assert cache.can_admit(0, len(PROMPT), num_spare=1)
    assert not cache.can_admit(0, len(PROMPT), num_spare=2)


def park(cache: KVCacheManager, sequence_id: int) -> tuple[BlockMove, ...]:
    """Computes all of `PROMPT` and parks the sequence."""
    cache.open_parking([20] * len(cache.pools))
    stop = cache.begin(sequence_id, PROMPT).num_tokens
    while stop < len(PROMPT):
        extended = cache.extend(sequence_id, PROMPT, len(PROMPT))
        assert extended is not None
        stop = extended[0]
    cache.commit(sequence_id)
    moves = cache.park(sequence_id)
    cache.free(sequence_id)
    cache.check_integrity()
    return moves


def return_of(cache: KVCacheManager, sequence_id: int, num_moves: int) -> None:
    """Lets a parked sequence run again; so many blocks come up."""
    assert cache.begin(sequence_id, [*PROMPT, 5]).num_tokens == len(PROMPT)
    assert len(cache.bring_up(sequence_id, [*PROMPT, 5])) == num_moves
    tables(cache, sequence_id, [*PROMPT, 5], len(PROMPT) + 1)
    cache.check_integrity()


def test_a_parked_sequence_shares_what_is_still_here_and_the_rest_comes_up() -> None:
    cache = make_cache(FULL)
    assert len(park(cache, 0)) == 3
    return_of(cache, 0, num_moves=1)  # two blocks were full, and the tree has them


def test_all_of_a_parked_sequence_comes_up_where_nothing_is_shared() -> None:
    cache = make_cache(FULL, enable_prefix_caching=False)
    park(cache, 0)
    return_of(cache, 0, num_moves=3)


def test_of_a_window_only_what_is_read_again_is_moved() -> None:
    cache = make_cache(FULL, SLIDING, enable_prefix_caching=False)
    moves = park(cache, 0)
    assert [len([move for move in moves if move.group == group]) for group in (0, 1)] == [3, 2]
    return_of(cache, 0, num_moves=5)


def test_what_lies_before_a_window_is_not_given_to_others_when_all_comes_up() -> None:
    cache = make_cache(FULL, SLIDING)
    park(cache, 0)
    assert cache.drop_unused() == [pool.free_blocks() for pool in cache.pools]
    return_of(cache, 0, num_moves=5)
    cache.commit(0)
    cache.free(0)
    cache.check_integrity()
    assert cache.begin(1, PROMPT).num_tokens == 8, "what came up is shared again"


def test_a_state_comes_up_even_where_all_blocks_are_still_here() -> None:
    cache = make_cache(FULL, STATE, num_blocks=3)
    cache.open_parking([3, 3])
    cache.begin(0, PROMPT)
    tables(cache, 0, PROMPT, 8)
    cache.commit(0)
    assert len(cache.park(0)) == 3
    cache.free(0)
    cache.begin(1, [50])
    for token in range(3):  # states of another sequence take the place of the snapshot, but not of the blocks
        tables(cache, 1, [50, 51, 52], token + 1)
    cache.abandon(1)
    cache.free(1)
    assert cache.begin(0, PROMPT).num_tokens == 8
    assert [move.group for move in cache.bring_up(0, PROMPT)] == [1]


def test_a_sequence_that_cannot_return_yet_stays_parked() -> None:
    cache = make_cache(FULL)
    park(cache, 0)
    cache.begin(0, [*PROMPT, 5])
    cache.bring_up(0, [*PROMPT, 5])
    cache.abandon(0)
    cache.free(0)
    cache.check_integrity()
    return_of(cache, 0, num_moves=1)
    cache.commit(0)
    cache.free(0)
    assert cache.begin(0, [*PROMPT, 5]).num_tokens == 8, "its places were released with the commit"


def test_without_room_below_nothing_can_be_parked() -> None:
    cache = make_cache(FULL)
    park(cache, 0)
    cache.begin(1, PROMPT)
    tables(cache, 1, PROMPT, 10)
    cache.commit(1)
    assert cache.can_park(1)
    cache.close_parking()
    assert not cache.can_park(1)
    assert cache.begin(0, [*PROMPT, 5]).num_tokens == 8


def test_the_check_says_what_does_not_add_up() -> None:
    cache = make_cache(FULL)
    cache.begin(0, PROMPT)
    tables(cache, 0, PROMPT, 10)
    cache.pools[0].allocate()
    with pytest.raises(AssertionError, match="group 0: block 3: counts 1 users, has 0"):
        cache.check_integrity()
