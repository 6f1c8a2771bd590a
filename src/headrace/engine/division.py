"""Divides what activations leave of a budget between weights that stay, KV in memory, and the slabs for KV on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.engine.memory import TYPICAL_TOKENS, CachePlan, SweepPlan, row_bytes
from headrace.engine.options import EngineOptions
from headrace.engine.weights import PlacedModel
from headrace.executor.kv_stream import NUM_SLABS, lay_out, open_kv_stream
from headrace.executor.pools import memory_shape
from headrace.kv_cache.pools import PageShape
from headrace.kv_cache.slab import BlockRecord, slab_bytes
from headrace.models.layer_table import AttentionSpec, LayerTable
from headrace.models.weight_map import WeightMap
from headrace.planner.calibration import measure_matrix_rate
from headrace.planner.placement import Demand, Rates, Shares, place
from headrace.schedule.steps import Point
from headrace.storage.budget import Budget
from headrace.storage.folders import DiskTier
from headrace.trace import Trace

_SLAB_SHARE = 1 / 16
"""Of what is free, for each slab: fewer, larger micro-batches wait for KV less often."""
_KV_DISK_SHARE = 1 / 2
"""Of what the disk has to spare; the rest is left to others."""
_MOST_SLAB_BLOCKS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class KVOnDisk:
    """Which KV lies on disk.

    Attributes:
        layers: attention layers.
        slab_blocks: blocks of a group that a micro-batch may name.
        num_bytes: room on the disk.
    """

    layers: frozenset[int] = frozenset()
    slab_blocks: int = 0
    num_bytes: int = 0


def divide(
    placed: PlacedModel,
    *,
    table: LayerTable,
    weights: WeightMap,
    budget: Budget,
    options: EngineOptions,
    sweep: SweepPlan,
    block_tokens: int,
    dtype: torch.dtype,
    disk: DiskTier,
) -> KVOnDisk:
    """Loads the weights that stay, and charges them and the slabs; returns which KV lies on disk."""
    shares = Shares(weights=options.weights_in_memory, kv=options.kv_in_memory)
    if placed.stream is None and shares.kv is None:
        return KVOnDisk()
    points = list(placed.images)
    kv_layers = [index for index, layer in enumerate(table.layers) if isinstance(layer.memory, AttentionSpec)]
    records = [_record(table, layer, block_tokens, dtype) for layer in kv_layers]
    slab_blocks = _slab_blocks(records, budget.free_bytes, sweep.context_tokens, block_tokens)
    typical = min(sweep.context_tokens, options.typical_row_tokens or TYPICAL_TOKENS)
    blocks = -(-typical // block_tokens)
    kv_layer_bytes = [blocks * record.num_bytes for record in records]
    all_bytes = row_bytes(
        table=table, dtype_bytes=dtype.itemsize, block_tokens=block_tokens, sweep=sweep, num_tokens=typical
    )
    demand = Demand(
        part_bytes=[placed.images[point].num_bytes for point in points],
        kv_layer_bytes=kv_layer_bytes,
        row_bytes=max(0, all_bytes - sum(kv_layer_bytes)),
        max_rows=sweep.max_num_seqs,
        operations_per_token=2.0 * sum(source.num_bytes for source in weights.parameters.values()) / dtype.itemsize,
        slab_bytes=_slabs_bytes(slab_blocks, records),
        written_share=1 / blocks,
        disk_bytes=int(_KV_DISK_SHARE * disk.free_bytes),
    )
    found = place(demand, _rates(placed, dtype), budget.free_bytes, shares)
    kept = [points[index] for index in sorted(found.resident)]
    if placed.stream is not None:
        budget.charge("weights", sum(placed.images[point].num_bytes for point in kept))
        placed.stream.keep(kept)
    if not found.kv_on_disk:
        return KVOnDisk()
    budget.charge("staging", demand.slab_bytes)
    layers = frozenset(kv_layers[index] for index in found.kv_on_disk)
    return KVOnDisk(layers=layers, slab_blocks=slab_blocks, num_bytes=demand.disk_bytes)


def move_kv_to_disk(
    placed: PlacedModel,
    kv: KVOnDisk,
    cache: CachePlan,
    block_tokens: int,
    dtype: torch.dtype,
    disk: DiskTier,
    trace: Trace,
) -> None:
    """Takes the room on disk, and makes micro-batches wait at the attention of the layers whose KV lies there.

    Raises:
        DiskSpaceError: the disk has too little room.
    """
    table = placed.model.table
    homes = lay_out(table, kv.layers, cache.num_blocks, block_tokens, dtype)
    placed.kv = open_kv_stream(
        homes, cache.num_blocks, disk=disk, slab_blocks=kv.slab_blocks, device=torch.device("cpu"), trace=trace
    )
    placed.points = tuple(
        point
        for before in placed.points
        for point in (before, Point("attention", before.layer))
        if point is before or (before.kind == "layer" and before.layer in kv.layers)
    )


def _record(table: LayerTable, layer: int, block_tokens: int, dtype: torch.dtype) -> BlockRecord:
    shape = memory_shape(table.layers[layer].memory)
    assert isinstance(shape, PageShape), f"layer {layer} keeps a state"
    return BlockRecord(shape=shape, block_tokens=block_tokens, dtype=dtype)


def _slab_blocks(records: Sequence[BlockRecord], free_bytes: int, context_tokens: int, block_tokens: int) -> int:
    """As many as a part of what is free holds, and at least those of the longest row."""
    largest = max((record.num_bytes for record in records), default=1)
    return max(-(-context_tokens // block_tokens), min(_MOST_SLAB_BLOCKS, int(_SLAB_SHARE * free_bytes / largest)))


def _slabs_bytes(slab_blocks: int, records: Sequence[BlockRecord]) -> int:
    return NUM_SLABS * slab_bytes(slab_blocks, set(records)) if records else 0


def _rates(placed: PlacedModel, dtype: torch.dtype) -> Rates:
    """What was measured while the probe ran, and in a moment now."""
    disk = placed.reader.bytes_per_second if placed.reader is not None else math.inf
    return Rates(disk=disk, matrix=measure_matrix_rate(torch.device("cpu"), dtype))
