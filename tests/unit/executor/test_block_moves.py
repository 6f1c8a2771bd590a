"""Blocks go down and come up whole, down before up; what could not come up is zero."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from headrace.executor.block_moves import BlockMoveError, BlockMover, NoBlockMoves, room_below
from headrace.kv_cache.block_bytes import BlockBytes
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.parking import BlockMove
from headrace.kv_cache.pools import KVPools
from headrace.scheduler.sweep import Sweep
from headrace.storage.folders import DiskTier
from headrace.storage.scratch_file import ScratchFile

PAGES = PageShape(num_kv_heads=2, key_width=8, value_width=8, latent=False)
NUM_PLACES = (4, 2)


@pytest.fixture
def pools() -> KVPools:
    return KVPools(
        layers=[(0, PAGES), (1, PAGES), (0, PAGES)],
        num_blocks=[4, 4],
        block_tokens=4,
        dtype=torch.float32,
        allocate=lambda shape, dtype: torch.randn(shape, dtype=dtype),
    )


@pytest.fixture
def mover(pools: KVPools, tmp_path: Path) -> Iterator[BlockMover]:
    blocks = BlockBytes(pools, 2)
    num_bytes = room_below(blocks, NUM_PLACES)
    file = ScratchFile(DiskTier(folder=tmp_path), what="KV", num_bytes=num_bytes, is_aligned=False)
    made = BlockMover(blocks, NUM_PLACES, file)
    yield made
    made.close()


def sweep(*, down: Sequence[tuple[int, int, int]] = (), up: Sequence[tuple[int, int, int]] = ()) -> Sweep:
    """A sweep that only moves: (group, block, place)."""

    def moves(numbers: Sequence[tuple[int, int, int]]) -> tuple[BlockMove, ...]:
        return tuple(BlockMove(group=group, block=block, place=place) for group, block, place in numbers)

    return Sweep(sweep_id=0, micro_batches=(), copies=(), moves_down=moves(down), moves_up=moves(up))


def contents(pools: KVPools, group: int, block: int) -> list[torch.Tensor]:
    return [tensor[block].clone() for tensor in pools.tensors(group)]


def test_blocks_come_up_as_they_went_down_into_other_blocks(pools: KVPools, mover: BlockMover) -> None:
    before = {(group, block): contents(pools, group, block) for group in (0, 1) for block in range(4)}
    mover.make(sweep(down=[(0, 1, 3), (0, 2, 0), (1, 1, 1)]))
    mover.make(sweep(up=[(0, 0, 3), (0, 1, 0), (1, 3, 1)]))
    for (group, block), came_from in {(0, 0): 1, (0, 1): 2, (1, 3): 1, (0, 3): 3}.items():
        for now, then in zip(contents(pools, group, block), before[group, came_from], strict=True):
            assert torch.equal(now, then)


def test_within_a_sweep_blocks_go_down_before_others_come_up_in_their_place(pools: KVPools, mover: BlockMover) -> None:
    first, second = contents(pools, 0, 1), contents(pools, 0, 2)
    mover.make(sweep(down=[(0, 1, 0)]))
    mover.make(sweep(down=[(0, 2, 1)], up=[(0, 2, 0)]))
    mover.make(sweep(up=[(0, 3, 1)]))
    assert all(map(torch.equal, contents(pools, 0, 2), first))
    assert all(map(torch.equal, contents(pools, 0, 3), second))


@pytest.mark.parametrize(("call", "is_up"), [("preadv", True), ("pwritev", False)])
def test_a_failure_is_told_and_leaves_zeros_where_something_should_have_come_up(
    call: str, is_up: bool, pools: KVPools, mover: BlockMover, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    mover.make(sweep(down=[(0, 1, 0)]))
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BlockMoveError, match="Input/output error"):
        mover.make(sweep(down=[] if is_up else [(0, 3, 1)], up=[(0, 2, 0)]))
    assert not any(part.any() for part in contents(pools, 0, 2))
    assert all(part.isfinite().all() for tensor in (pools.tensors(0), pools.tensors(1)) for part in tensor)


def test_without_a_tier_below_a_sweep_that_moves_is_our_mistake() -> None:
    NoBlockMoves().make(sweep())
    with pytest.raises(AssertionError, match="moves blocks"):
        NoBlockMoves().make(sweep(down=[(0, 1, 0)]))
