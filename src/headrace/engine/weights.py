"""Decides whether a model's weights all stay in memory, and puts together what brings the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from headrace.checkpoint.reader import RangeReader
from headrace.engine.ring_sizes import RingSizes
from headrace.engine.tiers import Tiers
from headrace.executor.expert_stream import Experts, ExpertStream, ResidentExperts
from headrace.executor.image_sources import DiskImages, Expert, HostImages, ImageSource
from headrace.executor.kv_stream import KVElsewhere, NoKVElsewhere
from headrace.executor.probe import WEIGHT_POINTS
from headrace.executor.weight_stream import ResidentWeights, Weights, WeightStream
from headrace.models.brought_experts import find_experts
from headrace.models.disk_embedding import keep_embedding_on_disk
from headrace.models.layer_image import LayerImage, expert_images, layer_image, row_images
from headrace.models.layer_table import ExpertsSpec, LayerTable
from headrace.models.parameter_places import ParameterPlaces
from headrace.models.takeover import EngineModel
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_copies import groups_to_copy, with_copies
from headrace.models.weight_map import ParameterSource, WeightMap
from headrace.models.weights import WeightLoader, move_buffers
from headrace.planner.placement import spread
from headrace.schedule.steps import Point
from headrace.storage.aligned import PAGE_BYTES, pages_above
from headrace.storage.disk_reader import STAGING_BYTES, DiskReader

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
        expert_stream: what brings the experts; None where the model has none, or all weights stay.
        images: the parts of the model that may be streamed, in order; layers without their experts.
        expert_images: of each layer that has experts, in their order.
        kv: what brings the KV that is not in the pools.
    """

    model: EngineModel
    weights: Weights
    points: tuple[Point, ...]
    stream: WeightStream | None = None
    expert_stream: ExpertStream | None = None
    reader: DiskReader | None = None
    source: ImageSource | None = None
    expert_source: ImageSource | None = None
    embedding_reader: RangeReader | None = None
    images: dict[Point, LayerImage]
    expert_images: dict[int, tuple[LayerImage, ...]] = field(default_factory=dict)
    kv: KVElsewhere = field(default_factory=NoKVElsewhere)

    @property
    def experts(self) -> Experts:
        """What makes experts present."""
        return self.expert_stream or ResidentExperts()

    @property
    def streamed_bytes(self) -> int:
        """What every sweep reads from the disk, whatever its tokens are."""
        return 0 if self.stream is None else self.stream.bytes_per_sweep

    @property
    def streamed_expert_bytes(self) -> int:
        """All experts of which a sweep reads those that its tokens need."""
        return 0 if self.expert_stream is None else self.expert_stream.num_bytes

    def part_bytes(self, point: Point) -> int:
        """What a part takes in memory, with its experts."""
        experts = self.expert_images.get(point.layer, ()) if point.kind == "layer" else ()
        return self.images[point].num_bytes + sum(image.num_bytes for image in experts)

    def keep(self, points: Sequence[Point]) -> None:
        """Reads parts, with their experts, into memory of their own, where they stay.

        Raises:
            CheckpointError: a file is gone, damaged, or has changed.
        """
        if self.stream is not None:
            self.stream.keep(points)
        if self.expert_stream is not None:
            self.expert_stream.keep(point.layer for point in points if point.kind == "layer")

    def close(self) -> None:
        """Ends all threads and gives the memory of streams back; a second call does nothing."""
        self.kv.close()
        if self.stream is not None and self.reader is not None:
            self.stream.close()
            if self.expert_stream is not None:
                self.expert_stream.close()
            self.reader.close()
        if self.embedding_reader is not None:
            self.embedding_reader.close()


def load_resident(model: PreTrainedModel, table: LayerTable, weights: WeightMap, device: torch.device) -> PlacedModel:
    """Loads all weights straight to `device`; they have been charged."""

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    with WeightLoader(model, weights, allocate=allocate) as loader:
        loader.load_all()
    if device.type != "cpu":
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
    spec, merged = _experts_spec(table), _merged_experts(model)
    layers, experts = _layer_images(weights, merged)
    sizes = RingSizes.of(
        {layer: image.num_bytes for layer, image in layers.items()},
        {layer: [image.num_bytes for image in images] for layer, images in experts.items()},
    )
    heads = row_images("head", _head_sources(weights), sizes.layer_bytes)
    images = {Point("layer", layer): image for layer, image in layers.items()}
    images |= {Point("head", index): image for index, image in enumerate(heads)}
    reader, embedding_reader = DiskReader(throttle=tiers.throttle, trace=tiers.trace), RangeReader(tiers.throttle)
    try:
        budget.charge("weights", weights.group_bytes("rest"))
        share = int(_SLOTS_SHARE * budget.free_bytes / sizes.largest_bytes)
        num_slots = max(_LEAST_SLOTS, min(_MOST_SLOTS, share))
        budget.charge("staging", sizes.num_bytes(num_slots))
        tiers.host_budget.charge("staging", STAGING_BYTES)
        places = ParameterPlaces(model, weights)
        with WeightLoader(model, weights, places=places) as loader:
            loader.load("rest")
        keep_embedding_on_disk(model, _embedding_source(weights), embedding_reader)
        if tiers.link is not None:
            tiers.host_budget.charge("staging", sizes.num_bytes(num_slots))
        source, expert_source = (
            DiskImages(reader) if tiers.link is None else HostImages(reader, tiers.link, staging_bytes=staging_bytes)
            for staging_bytes in (sizes.layer_bytes, sizes.expert_bytes)
        )
        stream = WeightStream(images, places=places, source=source, num_slots=num_slots)
        expert_stream = None
        if experts and spec is not None:
            num_places = sizes.num_places(num_slots)
            expert_stream = ExpertStream(experts, spec=spec, source=expert_source, num_places=num_places)
    except BaseException:
        reader.close()
        embedding_reader.close()
        raise
    return PlacedModel(
        model=EngineModel(model, table, num_head_parts=len(heads)),
        weights=stream,
        points=_points(table, len(heads), experts),
        stream=stream,
        expert_stream=expert_stream,
        reader=reader,
        source=source,
        expert_source=expert_source,
        embedding_reader=embedding_reader,
        images=images,
        expert_images=experts,
    )


def hold_on_host(placed: PlacedModel, tiers: Tiers, share: float | None, num_bytes: int) -> None:
    """Reads streamed weights into the memory of a device's host: the share that is asked for, or what fits.

    Raises:
        BudgetError: the host does not hold that share.
    """
    if placed.stream is None or not isinstance(placed.source, HostImages):
        return
    streamed = [point for point in placed.images if placed.stream.streams(point)]
    count = len(streamed) if share is None else min(len(streamed), round(share * len(placed.images)))
    held = [streamed[index] for index in sorted(spread(len(streamed), count))]
    while share is None and sum(map(placed.part_bytes, held)) > num_bytes:
        held = [streamed[index] for index in sorted(spread(len(streamed), len(held) - 1))]
    tiers.host_budget.charge("weights", sum(map(placed.part_bytes, held)))
    placed.source.hold((point, placed.images[point]) for point in held)
    if isinstance(placed.expert_source, HostImages):
        placed.expert_source.hold(
            (Expert(point.layer, index), image)
            for point in held
            if point.kind == "layer"
            for index, image in enumerate(placed.expert_images.get(point.layer, ()))
        )


def least_stream_bytes(model: PreTrainedModel, weights: WeightMap) -> int:
    """Returns what `open_stream` needs at least, and what making the copies does before."""
    layers, experts = {}, {}
    merged = _merged_experts(model)
    for layer in range(weights.num_layers):
        own, others = _split(weights, layer, merged)
        layers[layer] = _image_bytes(others)
        if own:
            num_bytes = sum(source.num_bytes // source.shape[0] for source in own)
            experts[layer] = [pages_above(num_bytes + 2 * PAGE_BYTES * len(own))] * own[0].shape[0]
    ring_bytes = RingSizes.of(layers, experts).num_bytes(_LEAST_SLOTS)
    copying = max((weights.group_bytes(group) for group in groups_to_copy(weights)), default=0)
    return max(copying, weights.group_bytes("rest") + ring_bytes + STAGING_BYTES)


def _merged_experts(model: PreTrainedModel) -> dict[int, frozenset[str]]:
    """Full names of the merged parameters of the experts of each layer."""
    return {layer: frozenset(found.parameters) for layer, found in find_experts(model).items()}


def _split(
    weights: WeightMap, layer: int, merged: Mapping[int, frozenset[str]]
) -> tuple[list[ParameterSource], list[ParameterSource]]:
    """Returns the merged parameters of a layer's experts, and what else the layer has."""
    names, sources = merged.get(layer, frozenset()), weights.in_group(layer)
    own = [source for source in sources if source.name in names]
    return own, [source for source in sources if source.name not in names]


def _layer_images(
    weights: WeightMap, merged: Mapping[int, frozenset[str]]
) -> tuple[dict[int, LayerImage], dict[int, tuple[LayerImage, ...]]]:
    """Returns the images of layers without their experts, and those of all experts of each layer that has any."""
    layers, experts = {}, {}
    for layer in range(weights.num_layers):
        own, others = _split(weights, layer, merged)
        layers[layer] = layer_image(f"layer {layer}", others)
        if own:
            experts[layer] = expert_images(layer, own)
    return layers, experts


def _experts_spec(table: LayerTable) -> ExpertsSpec | None:
    """The experts that every layer has which has any; None where no layer does."""
    return next((layer.experts for layer in table.layers if layer.experts is not None), None)


def _image_bytes(sources: Sequence[ParameterSource]) -> int:
    """At most what an image of `sources` takes, before it is known where they will be read from."""
    return sum(source.num_bytes for source in sources) + 2 * PAGE_BYTES * len(sources)


def _points(table: LayerTable, num_head_parts: int, experts: Collection[int] = ()) -> tuple[Point, ...]:
    """Where micro-batches wait for weights, and for those of the experts of some layers."""
    before = [
        point
        for point in table.points()
        if (point.kind in WEIGHT_POINTS and point.kind != "head")
        or (point.kind == "experts" and point.layer in experts)
    ]
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
