"""Attention over KV that lies in the memory of a device's host: there, where that beats bringing it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from headrace.attention.grouped import PIECE_TOKENS, TILE_BYTES
from headrace.engine.memory import SweepPlan
from headrace.engine.options import EngineOptions
from headrace.engine.tiers import Tiers
from headrace.executor.kv_homes import AttendsAtHome, LayerHome
from headrace.kv_cache.local_blocks import LocalBlocks
from headrace.models.layer_table import LayerTable
from headrace.planner.attention_place import AttentionRates, host_is_faster
from headrace.planner.attention_rates import AttentionShape, measure_attention
from headrace.planner.model_shapes import attention_shape
from headrace.scheduler.sweep import Chunk
from headrace.units import MIB

_MEASURED_BYTES = 16 * MIB
_TILES = 5
"""Of a tile's size: its keys as they are kept, its keys and its values as they are multiplied, and twice its scores."""


def never(home: LayerHome, chunks: Sequence[Chunk], blocks: LocalBlocks) -> bool:
    """Everything is brought."""
    return False


def always(home: LayerHome, chunks: Sequence[Chunk], blocks: LocalBlocks) -> bool:
    """Nothing is brought."""
    return True


def attends_at_home(
    table: LayerTable,
    layers: Collection[int],
    tiers: Tiers,
    options: EngineOptions,
    sweep: SweepPlan,
    dtype: torch.dtype,
) -> AttendsAtHome:
    """Returns who attends over the KV of `layers` on the host: as the options say, or as measured rates advise.

    What attention takes of the host's memory is charged.

    Raises:
        BudgetError: the options ask for it, and the host has too little memory.
    """
    host = tiers.host_budget
    shape = attention_shape(table.attention_of(min(layers)), table.num_heads)
    num_bytes = _scratch_bytes(shape, sweep, dtype)
    if options.attend_on_host is False or (options.attend_on_host is None and num_bytes > host.free_bytes):
        return never
    host.charge("attention", num_bytes)
    if options.attend_on_host:
        return always
    assert tiers.link is not None, "without a device there is no host to attend instead"
    decode, prefill = measure_attention(
        torch.device("cpu"), dtype, shape, codec=options.kv_codec, kv_bytes=_MEASURED_BYTES
    )
    rates = AttentionRates(
        link=tiers.link.bytes_per_second,
        host_bytes=decode.kv_bytes_per_second,
        host_operations=prefill.operations_per_second,
    )

    def is_faster(home: LayerHome, chunks: Sequence[Chunk], blocks: LocalBlocks) -> bool:
        pairs = sum((chunk.start + chunk.stop + 1) * chunk.num_tokens // 2 for chunk in chunks)
        num_operations = 2 * pairs * shape.num_heads * (shape.key_width + shape.value_width)
        return host_is_faster(len(blocks.blocks) * home.record.num_bytes, num_operations, rates)

    return is_faster


def _scratch_bytes(shape: AttentionShape, sweep: SweepPlan, dtype: torch.dtype) -> int:
    """What attention over a micro-batch takes at most: tiles, each of one row at least, and queries and results."""
    row = max(PIECE_TOKENS * shape.num_heads, shape.num_kv_heads * shape.key_width)
    tile = max(TILE_BYTES, 4 * sweep.context_tokens * row)
    numbers = (shape.num_heads + shape.num_kv_heads) * (shape.key_width + shape.value_width)
    return _TILES * tile + sweep.micro_batch_tokens * numbers * (4 + dtype.itemsize)
