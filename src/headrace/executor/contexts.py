"""From a sweep's integers to the tensors that its micro-batches run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from headrace.attention.ragged import AttentionBackend, Integers, RaggedLayout
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.pools import KVPools
from headrace.models.micro_batch import LastTokens, MicroBatchContext, StateBatch
from headrace.schedule.steps import Point
from headrace.scheduler.sweep import BlockCopy, Chunk, MicroBatch


def ragged_layout(
    chunks: Sequence[Chunk],
    group_id: int,
    block_tokens: int,
    device: torch.device,
    translate: Callable[[Integers], Integers] = lambda table: table,
) -> RaggedLayout:
    """Returns chunks as one KV group sees them.

    Args:
        translate: from the block numbers of the chunks' tables to those that the layout shall name.
    """
    tables = [chunk.block_tables[group_id] for chunk in chunks]
    table = np.full((len(tables), max(map(len, tables))), -1, dtype=np.int64)
    for row, blocks in enumerate(tables):
        table[row, : len(blocks)] = blocks
    return RaggedLayout.build(
        block_tokens=block_tokens,
        starts=np.array([chunk.start for chunk in chunks], dtype=np.int64),
        lengths=np.array([chunk.num_tokens for chunk in chunks], dtype=np.int64),
        block_table=translate(table),
        device=device,
    )


def _last_of_each(ends: Integers, counts: Integers) -> Integers:
    """Returns the `counts` numbers before each of `ends`, in order."""
    places: Integers = np.repeat(ends - np.cumsum(counts), counts) + np.arange(counts.sum())
    return places


class ContextBuilder:
    """Knows the groups and the pools, which are the same in every sweep."""

    def __init__(
        self,
        *,
        groups: Sequence[KVGroup],
        block_tokens: int,
        pools: KVPools,
        attention: AttentionBackend,
        device: torch.device,
        skipped_layers: frozenset[int] = frozenset(),
    ) -> None:
        self._groups = groups
        self._block_tokens = block_tokens
        self._pools = pools
        self._attention = attention
        self._device = device
        self._skipped_layers = skipped_layers

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Makes the copies that come before a sweep."""
        self._pools.copy(copies)

    def build(self, micro_batch: MicroBatch, waits: frozenset[Point]) -> MicroBatchContext:
        """Returns the context of one micro-batch, which will suspend at `waits`; reads the chunks only."""
        chunks = micro_batch.chunks
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        lengths = np.array([chunk.num_tokens for chunk in chunks], dtype=np.int64)
        ends = np.cumsum(lengths)
        tokens = np.concatenate([np.asarray(chunk.token_ids, dtype=np.int64) for chunk in chunks])
        positions = np.arange(len(tokens)) - np.repeat(ends - lengths - starts, lengths)
        num_logits = np.array([chunk.num_logits for chunk in chunks], dtype=np.int64)
        layouts = tuple(self._layout(group, chunks, lengths) for group in self._groups)
        return MicroBatchContext(
            token_ids=self._tensor(tokens)[None],
            positions=self._tensor(positions)[None],
            wanted=LastTokens(counts=num_logits, tokens=self._tensor(_last_of_each(ends, num_logits))),
            layouts=layouts,
            pools=self._pools,
            attention=self._attention,
            waits=waits,
            row_lengths=np.maximum(positions + 1, np.repeat([chunk.num_at_once for chunk in chunks], lengths)),
            skipped_layers=self._skipped_layers,
        )

    def _layout(self, group: KVGroup, chunks: Sequence[Chunk], lengths: Integers) -> RaggedLayout | list[StateBatch]:
        if group.kind == "state":
            return self._state_batches([chunk.block_tables[group.group_id] for chunk in chunks], lengths)
        return ragged_layout(chunks, group.group_id, self._block_tokens, self._device)

    def _state_batches(self, slots: Sequence[tuple[int, ...]], lengths: Integers) -> list[StateBatch]:
        """Batches chunks of equal length that do, or do not, continue a state; readers come after their writers."""
        firsts = np.cumsum(lengths) - lengths
        turn_of_target: dict[int, int] = {}
        alike: dict[tuple[int, int, bool], list[int]] = {}
        for row, (source, target) in enumerate(slots):
            turn = turn_of_target.get(source, -1) + 1
            turn_of_target[target] = turn
            alike.setdefault((turn, int(lengths[row]), source >= 0), []).append(row)
        return [
            StateBatch(
                tokens=self._tensor(firsts[rows][:, None] + np.arange(length)),
                sources=self._tensor(np.array([slots[row][0] for row in rows])) if continues else None,
                targets=self._tensor(np.array([slots[row][1] for row in rows])),
            )
            for (_, length, continues), rows in sorted(alike.items())
        ]

    def _tensor(self, array: Integers) -> Tensor:
        return torch.from_numpy(array).to(self._device)
