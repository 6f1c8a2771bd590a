"""The tier below is opened when the first row needs it, as large as its disk allows, and asked once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from headrace.engine.moving import KVMoving, measure_file
from headrace.engine.tiers import CPU, Tiers
from headrace.kv_cache.block_bytes import BlockBytes
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.manager import KVCacheManager
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.pools import KVPools, SlotShape
from headrace.planner.preemption import SweepSpeed
from headrace.storage.budget import Budget
from headrace.storage.folders import DiskTier
from headrace.storage.scratch_file import ScratchFile
from headrace.trace import NoTrace
from headrace.units import KIB, MIB

GROUPS = (
    KVGroup(group_id=0, layers=(0,), kind="full"),
    KVGroup(group_id=1, layers=(1,), kind="sliding", window=5),
    KVGroup(group_id=2, layers=(2,), kind="state"),
)
PAGES = PageShape(num_kv_heads=1, key_width=64, value_width=64, latent=False)
SLOTS = SlotShape(conv_shape=(512,), recurrent_shape=(512,))
NUM_BLOCKS = [100, 20, 10]
BLOCK_BYTES = 4 * KIB
"""Of every group: two times 64 numbers for each of 8 tokens, or two times 512 for a state."""


@contextmanager
def moving(disk: DiskTier, speed: SweepSpeed | None = None) -> Iterator[tuple[KVMoving, KVCacheManager]]:
    cache = KVCacheManager(GROUPS, num_blocks=NUM_BLOCKS, block_tokens=8, snapshot_tokens=8)
    pools = KVPools(
        layers=[(0, PAGES), (1, PAGES), (2, SLOTS)],
        num_blocks=NUM_BLOCKS,
        block_tokens=8,
        dtype=torch.float32,
        allocate=lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    )
    budget = Budget(tier="host", limit_bytes=1 << 40, option="--memory")
    tiers = Tiers(
        device=CPU, host_budget=budget, device_budget=budget, disk=disk, link=None, throttle=None, trace=NoTrace()
    )
    with closing(KVMoving(cache=cache, blocks=BlockBytes(pools, 3), tiers=tiers, speed=speed or SweepSpeed())) as made:
        yield made, cache


def places(cache: KVCacheManager) -> list[int]:
    return [len(free) for free in cache._parked._free]


def test_nothing_is_opened_before_a_row_is_preempted(tmp_path: Path) -> None:
    with moving(DiskTier(folder=tmp_path / "below")) as (_, cache):
        assert not (tmp_path / "below").exists()
        assert places(cache) == [0, 0, 0]


def test_there_are_two_places_for_each_block_where_the_disk_has_the_room(tmp_path: Path) -> None:
    with moving(DiskTier(folder=tmp_path)) as (made, cache):
        assert made.is_faster(100)
        assert places(cache) == [200, 40, 20]


def test_a_quarter_of_what_the_disk_may_hold_is_taken(tmp_path: Path) -> None:
    most = 4 * 2 * sum(NUM_BLOCKS) * BLOCK_BYTES
    with moving(DiskTier(folder=tmp_path, limit_bytes=most // 2)) as (made, cache):
        made.is_faster(100)
        assert places(cache) == [100, 20, 10]


def test_a_disk_without_room_is_said_once_and_never_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with moving(DiskTier(folder=tmp_path, limit_bytes=10)) as (made, cache), caplog.at_level(logging.WARNING):
        assert not made.is_faster(100)
        assert not made.is_faster(100)
        assert places(cache) == [0, 0, 0]
    assert ["too little room" in record.message for record in caplog.records] == [True]


def test_rows_are_computed_again_where_the_engine_is_fast(tmp_path: Path) -> None:
    with moving(DiskTier(folder=tmp_path), SweepSpeed(tokens_per_second=1e15)) as (made, _):
        assert not made.is_faster(100)


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks"), [(1, 1 + 1 + 1), (8, 1 + 1 + 1), (9, 2 + 2 + 1), (16, 2 + 1 + 1), (80, 10 + 1 + 1)]
)
def test_only_what_a_row_goes_on_from_is_counted(num_tokens: int, num_blocks: int, tmp_path: Path) -> None:
    with moving(DiskTier(folder=tmp_path)) as (made, _):
        assert made._moved_bytes(num_tokens) == num_blocks * BLOCK_BYTES


@pytest.mark.parametrize("num_bytes", [10, 3 * MIB])
def test_a_store_is_measured_in_both_directions(num_bytes: int, tmp_path: Path) -> None:
    disk = DiskTier(folder=tmp_path)
    with ScratchFile(disk, what="a test", num_bytes=num_bytes, is_aligned=False) as file:
        rates = measure_file(file, num_bytes)
    assert rates.down > 0 and rates.up > 0
