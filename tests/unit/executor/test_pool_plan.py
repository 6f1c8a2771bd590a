"""Bytes are split over groups so that rows fit in all of them, and one long row always does."""

from __future__ import annotations

import random

from headrace.executor.pool_plan import SNAPSHOTS_PER_SEQUENCE, GroupDemand, PoolPlanner
from headrace.kv_cache.groups import KVGroup

FULL = GroupDemand(group=KVGroup(group_id=0, layers=(0,), kind="full"), block_bytes=100)
SLIDING = GroupDemand(group=KVGroup(group_id=1, layers=(1,), kind="sliding", window=64), block_bytes=300)
STATE = GroupDemand(group=KVGroup(group_id=2, layers=(2,), kind="state"), block_bytes=1000)


def planner(*demands: GroupDemand) -> PoolPlanner:
    return PoolPlanner(demands=demands, block_tokens=32, sweep_tokens=128)


def test_a_row_needs_blocks_for_all_its_tokens_a_window_or_its_states() -> None:
    assert planner(FULL, SLIDING, STATE).blocks_for(2, 1000) == [64, 14, 2 * (2 + SNAPSHOTS_PER_SEQUENCE)]
    assert planner(FULL, SLIDING, STATE).blocks_for(1, 1) == [1, 1, 2 + SNAPSHOTS_PER_SEQUENCE]


def test_the_longest_sequence_fits_and_a_longer_one_does_not() -> None:
    plan = planner(FULL, SLIDING)
    longest = plan.longest_sequence(5000, 10_000)
    assert plan.bytes_for(1, longest) <= 5000 < plan.bytes_for(1, longest + 1)
    assert plan.longest_sequence(5000, 40) == 40
    assert plan.longest_sequence(50, 40) == 0


def test_any_split_holds_the_longest_row_and_stays_within_the_bytes() -> None:
    draw = random.Random(0)
    for _ in range(200):
        demands = draw.sample([FULL, SLIDING, STATE], draw.randrange(1, 4))
        plan = planner(*demands)
        longest, typical = sorted((draw.randrange(1, 5000), draw.randrange(1, 5000)), reverse=True)
        num_bytes = plan.bytes_for(1, longest) + draw.randrange(1_000_000)
        blocks = plan.split(num_bytes, max_sequences=50, typical_tokens=typical, max_tokens=longest)
        cost = sum(count * demand.block_bytes for count, demand in zip(blocks, demands, strict=True))
        assert cost <= num_bytes
        assert all(have >= need for have, need in zip(blocks, plan.blocks_for(1, longest), strict=True))


def test_a_split_takes_no_more_than_the_rows_could_use() -> None:
    plan = planner(FULL, STATE)
    assert plan.split(10**9, max_sequences=3, typical_tokens=100, max_tokens=320) == plan.blocks_for(3, 320)
