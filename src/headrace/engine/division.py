"""Divides what activations leave of the budgets between weights that stay, KV, and the slabs for KV that lies below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import torch

from headrace.compression.kv_codec import KVCodec
from headrace.compression.weight_codecs import WeightCodec
from headrace.engine.below import open_scratch_file
from headrace.engine.host_attention import attends_at_home, never
from headrace.engine.memory import CachePlan, SweepPlan, needed_context, row_bytes, typical_tokens
from headrace.engine.options import EngineOptions
from headrace.engine.placed_model import PlacedModel, Streams
from headrace.engine.streaming import hold_on_host
from headrace.engine.tiers import Tiers
from headrace.executor.kv_homes import AttendsAtHome, LayerHome, lay_out
from headrace.executor.kv_stream import NUM_SLABS, KVStream
from headrace.kv_cache.slab import BlockRecord, slab_bytes
from headrace.kv_cache.stores import FileBehindLink, FileStore, HostStore, KVStore
from headrace.models.layer_image import LayerImage
from headrace.models.layer_table import AttentionSpec, LayerTable
from headrace.models.packed_layers import packed_codec
from headrace.models.weight_map import WeightMap
from headrace.planner.calibration import measure_matrix_rate
from headrace.planner.calibration_store import calibrated_rates
from headrace.planner.placement import Demand, Placement, Rates, Shares, place, spread
from headrace.schedule.steps import Point
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.disk_reader import BLOCK_BYTES, NUM_THREADS, DiskReader

_SLAB_SHARE = 1 / 16
"""Of what is free, for each slab: fewer, larger micro-batches wait for KV less often."""
_KV_DISK_SHARE = 1 / 2
"""Of what the disk has to spare; the rest is left to others."""
_KV_HOST_SHARE = 1 / 2
"""Of what the host of a device has free, where KV lies there; the rest is for weights."""
_MOST_SLAB_BLOCKS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class KVBelow:
    """Which KV does not lie on the device.

    Attributes:
        on_host, on_disk: attention layers.
        slab_blocks: blocks of a group that a micro-batch may name.
        num_bytes: room for it.
        attends_at_home: who attends over KV on the host there.
    """

    on_host: frozenset[int] = frozenset()
    on_disk: frozenset[int] = frozenset()
    slab_blocks: int = 0
    num_bytes: int = 0
    attends_at_home: AttendsAtHome = never

    @property
    def layers(self) -> frozenset[int]:
        """All of them."""
        return self.on_host | self.on_disk


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """What `divide` has found.

    Attributes:
        kv: which KV lies below the device.
        filling_tokens: that are reckoned to be computed in the time in which a sweep's weights come.
    """

    kv: KVBelow = field(default_factory=KVBelow)
    filling_tokens: int = 0


class _RowDemand(TypedDict):
    kv_layer_bytes: list[int]
    row_bytes: int
    written_share: float
    longest_row: float


def divide(
    placed: PlacedModel,
    tiers: Tiers,
    *,
    weights: WeightMap,
    options: EngineOptions,
    sweep: SweepPlan,
    block_tokens: int,
    dtype: torch.dtype,
) -> Division:
    """Loads the weights that stay, and charges them and the slabs."""
    shares = Shares(weights=options.weights_on_device, kv=options.kv_on_device)
    streams = placed.streams
    if streams is None and shares.kv is None:
        return Division()
    table, budget = placed.model.table, tiers.device_budget
    points = [] if streams is None else list(streams.parts.images)
    kv_layers = [index for index, layer in enumerate(table.layers) if isinstance(layer.memory, AttentionSpec)]
    records = [_record(table, layer, options, block_tokens, dtype) for layer in kv_layers]
    slab_blocks = _slab_blocks(records, budget.free_bytes, sweep.context_tokens, block_tokens)
    all_slab_bytes = NUM_SLABS * slab_bytes(slab_blocks, set(records)) if records else 0
    room = _room_below(tiers, all_slab_bytes)
    demand = Demand(
        part_bytes=[] if streams is None else [streams.part_bytes([point]) for point in points],
        max_rows=sweep.max_num_seqs,
        all_rows=options.expected_rows,
        operations_per_token=2.0 * _active_numbers(weights, streams, table, dtype),
        slab_bytes=all_slab_bytes,
        room_below_bytes=room.host_bytes + room.disk_bytes,
        **_row_demand(table, records, options, sweep, block_tokens, dtype),
    )
    rates = _rates(placed, tiers, dtype, packed_codec(weights))
    found = place(demand, rates, budget.free_bytes, shares)
    filling_tokens = _filling_tokens(demand, rates, found)
    if streams is not None:
        kept = [point for index, point in enumerate(points) if index in found.resident]
        budget.charge("weights", streams.part_bytes(kept))
        streams.keep(kept)
    below = [kv_layers[index] for index in sorted(found.kv_below)]
    on_host = _kv_on_host(below, len(kv_layers), options.kv_on_host, tiers)
    if not tiers.are_one:
        hold_on_host(
            placed, tiers, options.weights_on_host, tiers.host_budget.free_bytes - (room.host_bytes if on_host else 0)
        )
    if not below:
        return Division(filling_tokens=filling_tokens)
    budget.charge("staging", all_slab_bytes)
    on_disk = frozenset(below) - on_host
    if on_disk and not tiers.are_one:
        tiers.host_budget.charge("staging", all_slab_bytes)  # KV on disk passes as much memory of the host
    kv = KVBelow(
        on_host=on_host,
        on_disk=on_disk,
        slab_blocks=slab_blocks,
        num_bytes=room.for_layers(len(on_host), len(on_disk)),
        attends_at_home=attends_at_home(table, on_host, tiers, options, sweep, dtype) if on_host else never,
    )
    return Division(kv=kv, filling_tokens=filling_tokens)


def move_kv_below(
    placed: PlacedModel,
    tiers: Tiers,
    kv: KVBelow,
    cache: CachePlan,
    block_tokens: int,
    dtype: torch.dtype,
    codec: KVCodec | None,
) -> None:
    """Takes the room below, and makes micro-batches wait at the attention of the layers whose KV lies there.

    Raises:
        BudgetError: the host has too little room.
        DiskSpaceError: the disk has too little room.
    """

    def on_host(num_bytes: int, is_aligned: bool) -> KVStore:
        assert tiers.link is not None, "without a device the host is no tier of its own"
        tiers.host_budget.charge("KV cache", num_bytes)
        return HostStore(tiers.link, num_bytes)

    def on_disk(num_bytes: int, is_aligned: bool) -> KVStore:
        file = open_scratch_file(tiers, "KV cache", num_bytes, is_aligned=is_aligned)
        return FileStore(file) if tiers.link is None else FileBehindLink(file, tiers.link)

    homes: dict[int, LayerHome] = {}
    for layers, open_store in ((kv.on_host, on_host), (kv.on_disk, on_disk)):
        if layers:
            homes |= lay_out(placed.model.table, layers, cache.num_blocks, block_tokens, dtype, open_store, codec)
    placed.kv = KVStream(
        homes,
        slab_blocks=kv.slab_blocks,
        device=tiers.device,
        allocate=AlignedBuffer if tiers.link is None else tiers.link.device_memory,
        attends_at_home=kv.attends_at_home,
    )
    placed.points = tuple(
        point
        for before in placed.points
        for point in (before, Point("attention", before.layer))
        if point is before or (before.kind == "layer" and before.layer in homes)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Room:
    """What the tiers below the device have for KV."""

    host_bytes: int
    disk_bytes: int

    def for_layers(self, num_on_host: int, num_on_disk: int) -> int:
        """Returns the bytes that so many layers of equal size can have, all together."""
        per_layer = [
            num_bytes / count
            for num_bytes, count in ((self.host_bytes, num_on_host), (self.disk_bytes, num_on_disk))
            if count
        ]
        return int((num_on_host + num_on_disk) * min(per_layer))


def _room_below(tiers: Tiers, all_slab_bytes: int) -> _Room:
    """`all_slab_bytes` of the host may be needed on the way to the disk."""
    host_bytes = 0 if tiers.are_one else int(_KV_HOST_SHARE * max(0, tiers.host_budget.free_bytes - all_slab_bytes))
    return _Room(host_bytes=host_bytes, disk_bytes=int(_KV_DISK_SHARE * tiers.disk.free_bytes))


def _filling_tokens(demand: Demand, rates: Rates, found: Placement) -> int:
    moved = sum(size for index, size in enumerate(demand.part_bytes) if index not in found.resident)
    return int(rates.matrix * moved / rates.below / demand.operations_per_token)


def _active_numbers(weights: WeightMap, streams: Streams | None, table: LayerTable, dtype: torch.dtype) -> float:
    """How many weights one token uses: of a layer's experts, only those that it goes to."""
    active = float(sum(source.num_numbers for source in weights.parameters.values()))
    for layer, images in {} if streams is None else streams.parts.experts.items():
        spec = table.layers[layer].experts
        assert spec is not None, f"layer {layer} has images of experts, and none in its table"
        active -= (
            sum(image.read_bytes for image in images) / dtype.itemsize * (1 - spec.num_per_token / spec.num_experts)
        )
    return active


def _row_demand(
    table: LayerTable,
    records: Sequence[BlockRecord],
    options: EngineOptions,
    sweep: SweepPlan,
    block_tokens: int,
    dtype: torch.dtype,
) -> _RowDemand:
    """What a typical row takes, in the terms of `Demand`."""
    typical = min(sweep.context_tokens, typical_tokens(options))
    num_blocks = -(-typical // block_tokens)
    kv_layer_bytes = [num_blocks * record.num_bytes for record in records]
    all_bytes = row_bytes(
        table=table,
        dtype_bytes=dtype.itemsize,
        block_tokens=block_tokens,
        options=options,
        sweep=sweep,
        num_tokens=typical,
    )
    return {
        "kv_layer_bytes": kv_layer_bytes,
        "row_bytes": max(0, all_bytes - sum(kv_layer_bytes)),
        "written_share": 1 / num_blocks,
        "longest_row": needed_context(table, options) / typical,
    }


def _kv_on_host(below: Sequence[int], num_layers: int, share: float | None, tiers: Tiers) -> frozenset[int]:
    """Which of the layers whose KV lies below have it on the host: all, unless the share says otherwise."""
    if tiers.are_one:
        return frozenset()
    count = len(below) if share is None else min(len(below), round(share * num_layers))
    return frozenset(below[index] for index in spread(len(below), count))


def _record(
    table: LayerTable, layer: int, options: EngineOptions, block_tokens: int, dtype: torch.dtype
) -> BlockRecord:
    shape = table.attention_of(layer).page_shape(options.kv_codec)
    return BlockRecord(shape=shape, block_tokens=block_tokens, dtype=dtype)


def _slab_blocks(records: Sequence[BlockRecord], free_bytes: int, context_tokens: int, block_tokens: int) -> int:
    """As many as a part of what is free holds, and at least those of the longest row."""
    largest = max((record.num_bytes for record in records), default=1)
    return max(-(-context_tokens // block_tokens), min(_MOST_SLAB_BLOCKS, int(_SLAB_SHARE * free_bytes / largest)))


def _rates(placed: PlacedModel, tiers: Tiers, dtype: torch.dtype, codec: WeightCodec | None) -> Rates:
    if tiers.link is not None:
        return Rates(below=tiers.link.bytes_per_second, matrix=measure_matrix_rate(tiers.device, dtype, codec))
    if placed.streams is None:
        return Rates(below=math.inf, matrix=measure_matrix_rate(tiers.device, dtype, codec))
    return disk_rates(placed.streams.reader, next(iter(placed.streams.parts.images.values())), dtype, codec)


def disk_rates(reader: DiskReader, image: LayerImage, dtype: torch.dtype, codec: WeightCodec | None = None) -> Rates:
    """Those of the last calibration of this machine and the image's disk; else of what was read so far, and of now."""
    name = str(dtype).removeprefix("torch.")
    found = calibrated_rates(image.ranges[0].file, dtype=name, num_threads=NUM_THREADS, block_bytes=BLOCK_BYTES)
    if found is None:
        found = Rates(below=reader.bytes_per_second, matrix=measure_matrix_rate(torch.device("cpu"), dtype, codec))
    elif codec is not None:
        found = replace(found, matrix=measure_matrix_rate(torch.device("cpu"), dtype, codec))
    if reader.throttle is None:
        return found
    return replace(found, below=min(found.below, reader.throttle.bytes_per_second))
