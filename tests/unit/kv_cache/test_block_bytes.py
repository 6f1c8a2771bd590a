from __future__ import annotations

import sys

import pytest
import torch

from headrace.kv_cache.block_bytes import BlockBytes
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.pools import KVPools, SlotShape
from headrace.storage.zero_pages import zero_pages

PAGES = PageShape(num_kv_heads=2, key_width=8, value_width=4, latent=False)
LATENT = PageShape(num_kv_heads=1, key_width=8, value_width=4, latent=True)
STATE = SlotShape(conv_shape=(3, 2), recurrent_shape=(5,))


def make_pools(*layers: tuple[int, PageShape | SlotShape | None], block_tokens: int = 4) -> KVPools:
    return KVPools(
        layers=layers,
        num_blocks=[6, 3],
        block_tokens=block_tokens,
        dtype=torch.bfloat16,
        allocate=lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    )


def test_a_record_has_the_block_of_every_layer_of_its_group() -> None:
    pools = make_pools((0, PAGES), (1, STATE), (0, LATENT), (0, None))
    blocks = BlockBytes(pools, 2)
    assert blocks.record_bytes(0) == 2 * (2 * 4 * 8 + 2 * 4 * 4 + 4 * 8)
    assert blocks.record_bytes(1) == 2 * 3 * 2 + 4 * 5
    assert [len(view) for view in blocks.views(0, 5)] == [128, 64, 64]


def test_what_is_written_into_a_view_is_in_that_block_alone() -> None:
    pools = make_pools((0, PAGES), (1, STATE))
    blocks = BlockBytes(pools, 2)
    for view in blocks.views(0, 2):
        view[:] = bytes([0x40]) * len(view)  # 3 in bfloat16
    keys, values = pools.tensors(0)
    for tensor in (keys, values):
        assert (tensor[2] == 3).all()
        assert not tensor[:2].any() and not tensor[3:].any()
    assert not any(tensor.any() for tensor in pools.tensors(1))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes pages back")
def test_blocks_that_hold_nothing_are_given_back_and_others_stay() -> None:
    pools = KVPools(
        layers=[(0, PAGES), (1, STATE)],
        num_blocks=[6, 3],
        block_tokens=256,
        dtype=torch.bfloat16,
        allocate=lambda shape, dtype: zero_pages(shape, dtype, torch.device("cpu")).fill_(1),
    )
    pools.give_back([[4, 0, 1], []])
    for tensor in pools.tensors(0):
        assert [bool(block.any()) for block in tensor] == [False, False, True, True, False, True]
    assert all(tensor.all() for tensor in pools.tensors(1))


def test_records_are_aligned_where_all_parts_are_whole_pages() -> None:
    assert not BlockBytes(make_pools((0, PAGES)), 2).is_aligned
    assert BlockBytes(make_pools((0, PAGES), block_tokens=256), 2).is_aligned
