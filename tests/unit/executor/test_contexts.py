"""Chunks become packed tensors: positions start anew with each chunk, states are read before they are passed on."""

from __future__ import annotations

import torch

from headrace.attention.grouped import GroupedAttention
from headrace.attention.ragged import RaggedLayout
from headrace.executor.contexts import ContextBuilder
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.pools import KVPools
from headrace.models.micro_batch import MicroBatchContext
from headrace.scheduler.sweep import Chunk, MicroBatch

GROUPS = (KVGroup(group_id=0, layers=(0,), kind="full"), KVGroup(group_id=1, layers=(1,), kind="state"))


def chunk(start: int, length: int, blocks: tuple[int, ...], slots: tuple[int, int], *, samples: bool = True) -> Chunk:
    tokens = tuple(range(10 * start, 10 * start + length))
    return Chunk(sequence_id=0, start=start, token_ids=tokens, block_tables=(blocks, slots), samples=samples)


def build(*chunks: Chunk) -> MicroBatchContext:
    pools = KVPools(
        layers=[], num_blocks=[0, 0], block_tokens=4, dtype=torch.float32, allocate=lambda shape, _: torch.zeros(shape)
    )
    builder = ContextBuilder(
        groups=GROUPS,
        block_tokens=4,
        pools=pools,
        attention=GroupedAttention(),
        device=torch.device("cpu"),
    )
    return builder.build(MicroBatch(chunks=chunks), frozenset())


def states(context: MicroBatchContext) -> list[tuple[list[list[int]], list[int] | None, list[int]]]:
    batches = context.layouts[1]
    assert isinstance(batches, list)
    return [
        (each.tokens.tolist(), None if each.sources is None else each.sources.tolist(), each.targets.tolist())
        for each in batches
    ]


def test_tokens_are_packed_with_the_positions_of_their_rows() -> None:
    context = build(chunk(5, 1, (0, 1), (0, 1)), chunk(0, 3, (2,), (-1, 2), samples=False), chunk(2, 2, (3,), (3, 4)))
    assert context.token_ids.tolist() == [[50, 0, 1, 2, 20, 21]]
    assert context.positions.tolist() == [[5, 0, 1, 2, 2, 3]]
    assert context.wanted.tokens.tolist() == [0, 5]
    layout = context.layouts[0]
    assert isinstance(layout, RaggedLayout)
    assert layout.block_table.tolist() == [[0, 1], [2, -1], [3, -1]]


def test_equally_long_chunks_run_through_a_state_mixer_together() -> None:
    context = build(
        chunk(5, 1, (0, 1), (0, 1)),
        chunk(0, 2, (2,), (-1, 2)),
        chunk(7, 1, (3, 4), (3, 4)),
        chunk(0, 2, (5,), (-1, 6)),
        chunk(4, 2, (6, 7), (7, 8)),
    )
    together = [([[0], [3]], [0, 3], [1, 4]), ([[1, 2], [4, 5]], None, [2, 6]), ([[6, 7]], [7], [8])]
    assert sorted(states(context)) == sorted(together)


def test_a_state_is_written_before_a_later_chunk_reads_it() -> None:
    # One row in three chunks, and another that goes on from the first one's end.
    context = build(
        chunk(0, 4, (0,), (-1, 5)),
        chunk(4, 1, (0, 1), (5, 6)),
        chunk(5, 4, (0, 1, 2), (6, 7)),
        chunk(4, 4, (0, 3), (5, 8)),
    )
    order = [target for _, _, targets in states(context) for target in targets]
    assert order.index(5) < min(order.index(6), order.index(8))
    assert order.index(6) < order.index(7)
    assert sorted(order) == [5, 6, 7, 8]
