"""The tensors of a model's KV groups, built from its layer table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from headrace.compression.kv_codec import KVCodec
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.pools import KVPools, SlotShape
from headrace.models.layer_table import AttentionSpec, LayerTable, StateSpec
from headrace.storage.zero_pages import zero_pages


def build_pools(
    table: LayerTable,
    num_blocks: Sequence[int],
    block_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    elsewhere: frozenset[int] = frozenset(),
    codec: KVCodec | None = None,
) -> KVPools:
    """Allocates `num_blocks` blocks (slots, for state groups) for each group of `table`.

    Args:
        elsewhere: layers whose KV is not kept here.
        codec: of keys and values; None: they are kept in `dtype`.
    """
    group_of = table.group_of()
    layers = [
        (group_of.get(index), None if index in elsewhere or layer.memory is None else memory_shape(layer.memory, codec))
        for index, layer in enumerate(table.layers)
    ]
    return KVPools(
        layers=layers,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        dtype=dtype,
        allocate=partial(zero_pages, device=device),
    )


def memory_shape(memory: AttentionSpec | StateSpec, codec: KVCodec | None) -> PageShape | SlotShape:
    """Returns what a layer keeps of each block or sequence."""
    if isinstance(memory, StateSpec):
        return SlotShape(conv_shape=memory.conv_shape, recurrent_shape=memory.recurrent_shape)
    return memory.page_shape(codec)
