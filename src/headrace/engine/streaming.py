"""Prepares a model whose weights do not all stay in memory: opens the streams that bring the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from headrace.checkpoint.reader import RangeReader
from headrace.engine.placed_model import PlacedModel, Streams, weight_points
from headrace.engine.ring_sizes import RingSizes
from headrace.engine.streamed_parts import StreamedParts, cut_into_parts, split_layers
from headrace.engine.tiers import Tiers
from headrace.executor.expert_stream import ExpertStream
from headrace.executor.image_sources import DiskImages, HostImages, ImageSource
from headrace.executor.weight_stream import WeightStream
from headrace.models.embedding_rows import keep_embedding_on_disk
from headrace.models.layer_image import aligned_layout
from headrace.models.layer_table import LayerTable
from headrace.models.packed_layers import packing_bytes
from headrace.models.parameter_places import ParameterPlaces
from headrace.models.takeover import EngineModel
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_copies import groups_to_copy, with_copies
from headrace.models.weight_map import ParameterSource, WeightMap
from headrace.models.weights import WeightLoader, allocate_on, move_buffers
from headrace.planner.placement import spread
from headrace.schedule.steps import Point
from headrace.storage.aligned import PAGE_BYTES, pages_above
from headrace.storage.disk_reader import STAGING_BYTES, DiskReader
from headrace.storage.link import Link

_LEAST_SLOTS = 2
"""One that computes, and one on its way."""
_MOST_SLOTS = 4
"""More would even out what takes unequally long, but hardly anything is left to be evened out."""
_SLOTS_SHARE = 1 / 4
"""Of what is free; slots beyond the least take no more."""


def open_stream(model: PreTrainedModel, table: LayerTable, weights: WeightMap, tiers: Tiers) -> PlacedModel:
    """Prepares all layers and the head to be streamed, and the embedding to be read by rows; loads what is left.

    What cannot be streamed from the checkpoint's own files is copied to the disk tier first, unless the copy is there
    already. All that sweeps read passes the throttle of the disk tier.

    Raises:
        BudgetError: not even that fits.
        CheckpointError: a file is gone.
        DiskSpaceError: there is no room for the copies.
    """
    budget = tiers.device_budget
    weights = with_copies(model, weights, tiers.disk)
    parts = cut_into_parts(model, weights)
    with ExitStack() as opened:
        reader = opened.enter_context(DiskReader(throttle=tiers.throttle, trace=tiers.trace))
        embedding_reader = RangeReader(tiers.throttle)
        opened.callback(embedding_reader.close)
        budget.charge("weights", weights.group_bytes("rest"))
        ring = _charge_ring(parts, tiers)
        tiers.host_budget.charge("staging", STAGING_BYTES)
        places = ParameterPlaces(model, weights)
        with WeightLoader(model, weights, places=places, allocate=allocate_on(tiers.device)) as loader:
            loader.load("rest")
        move_buffers(model, tiers.device)
        keep_embedding_on_disk(model, _embedding_source(weights), embedding_reader, tiers.device)
        source = _source(reader, tiers.link, ring.num_slots, ring.in_files.part_bytes)
        layers = WeightStream(parts.images, places=places, source=source, num_slots=ring.num_slots)
        streams = Streams(
            parts=parts, reader=reader, embedding_reader=embedding_reader, layers=layers, layer_source=source
        )
        experts = next((layer.experts for layer in table.layers if layer.experts is not None), None)
        if experts is not None:
            source = _source(reader, tiers.link, ring.num_places, ring.in_files.expert_bytes)
            streams.experts = ExpertStream(parts.experts, spec=experts, source=source, num_places=ring.num_places)
            streams.expert_source = source
        opened.pop_all()
    return PlacedModel(
        model=EngineModel(model, table, num_head_parts=parts.num_head_parts),
        points=weight_points(table, parts.num_head_parts, parts.experts),
        streams=streams,
    )


def hold_on_host(placed: PlacedModel, tiers: Tiers, share: float | None, num_bytes: int) -> None:
    """Reads streamed weights into the memory of a device's host: the share that is asked for, or what fits.

    Raises:
        BudgetError: the host does not hold that share.
    """
    if placed.streams is None:
        return
    parts = placed.streams.parts
    streamed = [point for point in parts.images if placed.streams.layers.streams(point)]
    count = len(streamed) if share is None else min(len(streamed), round(share * len(parts.images)))
    held = _spread_over(streamed, count)
    while share is None and parts.file_bytes(held) > num_bytes:
        held = _spread_over(streamed, len(held) - 1)
    tiers.host_budget.charge("weights", parts.file_bytes(held))
    placed.streams.hold_on_host(held)


def least_stream_bytes(model: PreTrainedModel, weights: WeightMap) -> int:
    """Returns what `open_stream` needs at least, and what making the copies does before."""
    sizes = []
    for own, merged in split_layers(model, weights).values():
        num_experts = merged[0].shape[0] if merged else 0
        expert_bytes = sum(source.num_bytes // num_experts + 2 * PAGE_BYTES for source in merged)
        sizes.append((_image_bytes(own), [pages_above(expert_bytes)] * num_experts))
    ring = RingSizes.of(sizes)
    copying = max((weights.group_bytes(group) for group in groups_to_copy(weights)), default=0)
    streaming = weights.group_bytes("rest") + ring.num_bytes(_LEAST_SLOTS, ring.num_places(_LEAST_SLOTS))
    return max(copying + packing_bytes(weights), streaming + STAGING_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ring:
    """How many slots and places there are; `in_files`: what they take on the way through a device's host."""

    num_slots: int
    num_places: int
    in_files: RingSizes


def _charge_ring(parts: StreamedParts, tiers: Tiers) -> _Ring:
    """Takes what parts and experts under way may have of the budgets; on a device, of the host's as well."""
    budget, in_files = tiers.device_budget, parts.sizes(lambda image: image.num_bytes)
    sizes = in_files if tiers.link is None else parts.sizes(lambda image: aligned_layout(image).num_bytes)
    num_slots = max(_LEAST_SLOTS, min(_MOST_SLOTS, int(_SLOTS_SHARE * budget.free_bytes / sizes.largest_bytes)))
    num_places = sizes.num_places(num_slots)
    budget.charge("staging", sizes.num_bytes(num_slots, num_places))
    if tiers.link is not None:
        tiers.host_budget.charge("staging", in_files.num_bytes(num_slots, num_places))
    return _Ring(num_slots=num_slots, num_places=num_places, in_files=in_files)


def _source(reader: DiskReader, link: Link | None, num_staging: int, staging_bytes: int) -> ImageSource:
    if link is None:
        return DiskImages(reader)
    return HostImages(reader, link, num_staging=num_staging, staging_bytes=staging_bytes)


def _spread_over(points: Sequence[Point], count: int) -> list[Point]:
    return [points[index] for index in sorted(spread(len(points), count))]


def _image_bytes(sources: Sequence[ParameterSource]) -> int:
    """At most what an image of `sources` takes, before it is known where they will be read from."""
    return sum(source.num_bytes for source in sources) + 2 * PAGE_BYTES * len(sources)


def _embedding_source(weights: WeightMap) -> ParameterSource:
    (source,) = weights.in_group("embedding")
    return source
