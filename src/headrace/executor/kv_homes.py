"""Where KV lies that is not in the pools: each layer's place in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from headrace.attention.ragged import KVPages
from headrace.compression.kv_codec import KVCodec
from headrace.kv_cache.local_blocks import LocalBlocks
from headrace.kv_cache.slab import BlockRecord
from headrace.kv_cache.stores import KVStore
from headrace.models.layer_table import LayerTable
from headrace.scheduler.sweep import Chunk
from headrace.storage.aligned import pages_above


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerHome:
    """Where one layer's blocks lie: block n is record n from `offset` on.

    Attributes:
        group: the layer's KV group.
        pages: the blocks, where a CPU can attend over them at home.
    """

    store: KVStore
    group: int
    offset: int
    record: BlockRecord
    pages: KVPages | None


def lay_out(
    table: LayerTable,
    layers: Iterable[int],
    num_blocks: Sequence[int],
    block_tokens: int,
    dtype: torch.dtype,
    open_store: Callable[[int, bool], KVStore],
    codec: KVCodec | None = None,
) -> dict[int, LayerHome]:
    """Gives each of `layers`, all of them attention layers, its place in one store.

    Args:
        open_store: makes a store of so many bytes; the second argument says whether all pieces will be page-aligned.
        codec: of keys and values; None: they are kept in `dtype`.
    """
    group_of, places, end = table.group_of(), [], 0
    for layer in sorted(layers):
        shape = table.attention_of(layer).page_shape(codec)
        record = BlockRecord(shape=shape, block_tokens=block_tokens, dtype=dtype)
        places.append((layer, end, record))
        end += pages_above(num_blocks[group_of[layer]] * record.num_bytes)
    store = open_store(end, all(record.is_aligned for _, _, record in places))
    return {
        layer: LayerHome(
            store=store,
            group=group_of[layer],
            offset=offset,
            record=record,
            pages=store.pages(offset, num_blocks[group_of[layer]], record),
        )
        for layer, offset, record in places
    }


AttendsAtHome = Callable[[LayerHome, Sequence[Chunk], LocalBlocks], bool]
"""(layer, chunks of a micro-batch, its blocks) -> whether it attends where the KV is, rather than having it brought."""
