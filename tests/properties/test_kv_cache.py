"""Block numbers under every order of events, and hits as long as they can be."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.kv_cache.blocks import BlockPool
from headrace.kv_cache.manager import KVCacheManager
from tests.properties.toy_model import CACHES, FULL

NUM_BLOCKS = 5


class BlockPoolMachine(RuleBasedStateMachine):
    """A pool beside plain counts of its users and holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.uses: Counter[int] = Counter()
        self.holds: Counter[int] = Counter()
        self.kept: set[int] = set()
        self.idle: list[int] = []

    def known(self) -> list[int]:
        return sorted({*self.uses.elements(), *self.holds.elements(), *self.idle})

    @precondition(lambda self: self.pool.num_free)
    @rule()
    def allocate(self) -> None:
        block = self.pool.allocate()
        assert block not in self.known()
        self.uses[block] = 1

    @precondition(lambda self: self.known())
    @rule(data=st.data(), is_hold=st.booleans())
    def use_again(self, data: st.DataObject, is_hold: bool) -> None:
        block = data.draw(st.sampled_from(self.known()))
        (self.pool.begin_hold if is_hold else self.pool.acquire)(block)
        (self.holds if is_hold else self.uses)[block] += 1
        if block in self.idle:
            self.idle.remove(block)

    @precondition(lambda self: +self.uses)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(+self.uses)))
        self.pool.release(block)
        self.leave(block, self.uses)

    @precondition(lambda self: +self.holds)
    @rule(data=st.data())
    def complete_hold(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(+self.holds)))
        self.pool.complete_hold(block)
        self.leave(block, self.holds)

    def leave(self, block: int, users: Counter[int]) -> None:
        users[block] -= 1
        if not self.uses[block] and not self.holds[block] and block in self.kept:
            self.idle.append(block)

    @precondition(lambda self: set(+self.uses) - self.kept)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(set(+self.uses) - self.kept)))
        self.pool.keep(block)
        self.kept.add(block)

    @precondition(lambda self: self.idle)
    @rule()
    def drop_the_oldest(self) -> None:
        assert self.pool.oldest_idle() == self.idle[0]
        self.kept.remove(self.idle[0])
        self.pool.drop(self.idle.pop(0))

    @invariant()
    def everything_adds_up(self) -> None:
        assert self.pool.check_integrity(self.uses, self.kept) == []
        assert self.pool.num_available == NUM_BLOCKS - len({*(+self.uses), *(+self.holds)})
        assert self.pool.num_free == self.pool.num_available - len(self.idle)


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(stateful_step_count=30)

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=24)


def compute(cache: KVCacheManager, sequence_id: int, token_ids: list[int]) -> int:
    """Computes a whole sequence in one sweep, and returns how many of its tokens were found."""
    hit = cache.begin(sequence_id, token_ids)
    stop = hit.num_tokens
    while stop < len(token_ids):
        extended = cache.extend(sequence_id, token_ids, len(token_ids))
        assert extended is not None
        stop, _ = extended
    cache.commit(sequence_id)
    cache.free(sequence_id)
    cache.check_integrity()
    return hit.num_tokens


def num_common(left: list[int], right: list[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@given(earlier=st.lists(TOKENS, max_size=8), token_ids=TOKENS, block_tokens=st.sampled_from([1, 3, 4]))
def test_in_a_full_group_a_hit_is_the_longest_prefix_in_full_blocks(
    earlier: list[list[int]], token_ids: list[int], block_tokens: int
) -> None:
    cache = KVCacheManager([FULL], num_blocks=[1000], block_tokens=block_tokens, snapshot_tokens=block_tokens)
    for sequence_id, each in enumerate(earlier):
        compute(cache, sequence_id, each)
    found = compute(cache, len(earlier), token_ids)
    kept = [each[: len(each) // block_tokens * block_tokens] for each in earlier]
    assert found == max((num_common(each, token_ids[:-1]) for each in kept), default=0)


@given(earlier=st.lists(TOKENS, max_size=8), token_ids=TOKENS)
def test_a_state_is_found_where_a_repeated_prompt_needs_it(earlier: list[list[int]], token_ids: list[int]) -> None:
    cache = KVCacheManager(CACHES["full and state"], num_blocks=[1000, 1000], block_tokens=2, snapshot_tokens=8)
    for sequence_id, each in enumerate([*earlier, token_ids]):
        compute(cache, sequence_id, each)
    assert compute(cache, len(earlier) + 1, token_ids) == (len(token_ids) - 1) // 2 * 2


@given(
    cache_kind=st.sampled_from(sorted(CACHES)),
    rows=st.lists(TOKENS, min_size=1, max_size=12),
    num_blocks=st.integers(26, 40),
)
def test_what_nobody_uses_never_stands_in_the_way(cache_kind: str, rows: list[list[int]], num_blocks: int) -> None:
    groups = CACHES[cache_kind]
    cache = KVCacheManager(groups, num_blocks=[num_blocks] * len(groups), block_tokens=1, snapshot_tokens=1)
    for sequence_id, token_ids in enumerate(rows):
        compute(cache, sequence_id, token_ids)
    assert all(pool.num_available == pool.num_blocks for pool in cache.pools)
