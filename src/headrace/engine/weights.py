"""Decides whether a model's weights all stay in memory, and puts together what brings the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from headrace.checkpoint.reader import RangeReader
from headrace.engine.tiers import Tiers
from headrace.executor.activations import Activations, ActivationsStay
from headrace.executor.block_moves import BlockMoves, NoBlockMoves
from headrace.executor.image_sources import DiskImages, HostImages, ImageSource
from headrace.executor.kv_stream import KVElsewhere, NoKVElsewhere
from headrace.executor.probe import WEIGHT_POINTS
from headrace.executor.weight_stream import ResidentWeights, Weights, WeightStream
from headrace.models.disk_embedding import keep_embedding_on_disk
from headrace.models.layer_image import LayerImage, aligned_layout, layer_image, row_images
from headrace.models.layer_table import LayerTable
from headrace.models.parameter_places import ParameterPlaces
from headrace.models.takeover import EngineModel
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_copies import groups_to_copy, with_copies
from headrace.models.weight_map import ParameterSource, WeightMap
from headrace.models.weights import WeightLoader, allocate_on, move_buffers
from headrace.planner.placement import spread
from headrace.schedule.steps import Point
from headrace.storage.aligned import PAGE_BYTES
from headrace.storage.disk_reader import STAGING_BYTES, DiskReader
from headrace.storage.link import Link

_LEAST_SLOTS = 2
"""One that computes, and one on its way."""
_MOST_SLOTS = 4
"""More would even out what takes unequally long, but hardly anything is left to be evened out."""
_SLOTS_SHARE = 1 / 4
"""Of what is free; slots beyond the least take no more."""


@dataclass(kw_only=True, slots=True)
class PlacedModel:
    """A model that can run.

    Attributes:
        points: where its micro-batches wait for weights, in order.
        stream: what brings the weights that do not stay; None where all do.
        images: the parts of the model that may be streamed, in order.
        kv: what brings the KV that is not in the pools.
        activations: what brings those of waiting micro-batches.
        moves: what moves the KV of preempted rows.
    """

    model: EngineModel
    weights: Weights
    points: tuple[Point, ...]
    stream: WeightStream | None = None
    reader: DiskReader | None = None
    source: ImageSource | None = None
    embedding_reader: RangeReader | None = None
    images: dict[Point, LayerImage]
    kv: KVElsewhere = field(default_factory=NoKVElsewhere)
    activations: Activations = field(default_factory=ActivationsStay)
    moves: BlockMoves = field(default_factory=NoBlockMoves)

    def part_bytes(self, points: Iterable[Point]) -> int:
        """Returns what the weights of `points`, which may be streamed, take where they are used."""
        return 0 if self.stream is None else sum(self.stream.part_bytes(point) for point in points)

    @property
    def streamed_bytes(self) -> int:
        """What every sweep reads from the disk."""
        return 0 if self.stream is None else self.stream.bytes_per_sweep

    def close(self) -> None:
        """Ends all threads and gives the memory of streams back; a second call does nothing."""
        self.activations.close()
        self.moves.close()
        self.kv.close()
        if self.stream is not None and self.reader is not None:
            self.stream.close()
            self.reader.close()
        if self.embedding_reader is not None:
            self.embedding_reader.close()


def load_resident(model: PreTrainedModel, table: LayerTable, weights: WeightMap, device: torch.device) -> PlacedModel:
    """Loads all weights straight to `device`; they have been charged."""
    with WeightLoader(model, weights, allocate=allocate_on(device)) as loader:
        loader.load_all()
    move_buffers(model, device)
    return place_resident(model, table)


def place_resident(model: PreTrainedModel, table: LayerTable) -> PlacedModel:
    """Takes over a model whose weights are all there; they have been charged."""
    return PlacedModel(model=EngineModel(model, table), weights=ResidentWeights(), points=_points(table, 1), images={})


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
    images = {
        Point("layer", index): layer_image(f"layer {index}", weights.in_group(index))
        for index in range(weights.num_layers)
    }
    heads = row_images("head", _head_sources(weights), max(image.num_bytes for image in images.values()))
    images |= {Point("head", index): image for index, image in enumerate(heads)}
    staging_bytes = max(image.num_bytes for image in images.values())
    slot_bytes = (
        staging_bytes if tiers.link is None else max(aligned_layout(image).num_bytes for image in images.values())
    )
    reader, embedding_reader = DiskReader(throttle=tiers.throttle, trace=tiers.trace), RangeReader(tiers.throttle)
    try:
        budget.charge("weights", weights.group_bytes("rest"))
        num_slots = max(_LEAST_SLOTS, min(_MOST_SLOTS, int(_SLOTS_SHARE * budget.free_bytes / slot_bytes)))
        budget.charge("staging", num_slots * slot_bytes)
        tiers.host_budget.charge("staging", STAGING_BYTES)
        if tiers.link is not None:
            tiers.host_budget.charge("staging", num_slots * staging_bytes)
        places = ParameterPlaces(model, weights)
        with WeightLoader(model, weights, places=places, allocate=allocate_on(tiers.device)) as loader:
            loader.load("rest")
        move_buffers(model, tiers.device)
        keep_embedding_on_disk(model, _embedding_source(weights), embedding_reader, tiers.device)
        source = _source(reader, tiers.link, num_slots, staging_bytes)
        stream = WeightStream(images, places=places, source=source, num_slots=num_slots)
    except BaseException:
        reader.close()
        embedding_reader.close()
        raise
    return PlacedModel(
        model=EngineModel(model, table, num_head_parts=len(heads)),
        weights=stream,
        points=_points(table, len(heads)),
        stream=stream,
        reader=reader,
        source=source,
        embedding_reader=embedding_reader,
        images=images,
    )


def _source(reader: DiskReader, link: Link | None, num_slots: int, staging_bytes: int) -> ImageSource:
    if link is None:
        return DiskImages(reader)
    return HostImages(reader, link, num_staging=num_slots, staging_bytes=staging_bytes)


def hold_on_host(placed: PlacedModel, tiers: Tiers, share: float | None, num_bytes: int) -> None:
    """Reads streamed weights into the memory of a device's host: the share that is asked for, or what fits.

    Raises:
        BudgetError: the host does not hold that share.
    """
    if placed.stream is None or not isinstance(placed.source, HostImages):
        return
    streamed = [(point, image) for point, image in placed.images.items() if placed.stream.streams(point)]
    count = len(streamed) if share is None else min(len(streamed), round(share * len(placed.images)))
    held = [streamed[index] for index in sorted(spread(len(streamed), count))]
    while share is None and sum(image.num_bytes for _, image in held) > num_bytes:
        held = [streamed[index] for index in sorted(spread(len(streamed), len(held) - 1))]
    tiers.host_budget.charge("weights", sum(image.num_bytes for _, image in held))
    placed.source.hold(held)


def least_stream_bytes(weights: WeightMap) -> int:
    """Returns what `open_stream` needs at least, and what making the copies does before."""
    slot_bytes = max(_image_bytes(weights.in_group(index)) for index in range(weights.num_layers))
    copying = max((weights.group_bytes(group) for group in groups_to_copy(weights)), default=0)
    return max(copying, weights.group_bytes("rest") + _LEAST_SLOTS * slot_bytes + STAGING_BYTES)


def _image_bytes(sources: Sequence[ParameterSource]) -> int:
    """At most what an image of `sources` takes, before it is known where they will be read from."""
    return sum(source.num_bytes for source in sources) + 2 * PAGE_BYTES * len(sources)


def _points(table: LayerTable, num_head_parts: int) -> tuple[Point, ...]:
    before = [point for point in table.points() if point.kind in WEIGHT_POINTS and point.kind != "head"]
    return (*before, *(Point("head", part) for part in range(num_head_parts)))


def _head_sources(weights: WeightMap) -> list[ParameterSource]:
    """The head's own parameters; where its matrix is tied to the embedding's, that one under the head's name."""
    own = list(weights.in_group("head"))
    tied = [
        replace(weights.parameters[source], name=name)
        for name, source in weights.tied.items()
        if weights.parameters[source].group == "embedding"
    ]
    return own + tied


def _embedding_source(weights: WeightMap) -> ParameterSource:
    (source,) = weights.in_group("embedding")
    return source
