"""A model that can run: its modules, and what brings that of its weights, KV and activations which is elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from headrace.checkpoint.reader import RangeReader
from headrace.engine.streamed_parts import StreamedParts
from headrace.executor.activations import Activations, ActivationsStay
from headrace.executor.block_moves import BlockMoves, NoBlockMoves
from headrace.executor.expert_stream import Experts, ExpertStream, ResidentExperts
from headrace.executor.image_sources import Expert, HostImages, ImageSource
from headrace.executor.kv_stream import KVElsewhere, NoKVElsewhere
from headrace.executor.probe import WEIGHT_POINTS
from headrace.executor.weight_stream import ResidentWeights, Weights, WeightStream
from headrace.models.interleaved_layers import interleave_layers
from headrace.models.layer_table import LayerTable
from headrace.models.products import library_for
from headrace.models.takeover import EngineModel
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import WeightMap
from headrace.models.weights import WeightLoader, allocate_on, move_buffers
from headrace.planner.filling import Streamed
from headrace.schedule.steps import Point
from headrace.storage.disk_reader import DiskReader


@dataclass(kw_only=True, slots=True)
class Streams:
    """What brings the weights that do not stay.

    Attributes:
        parts: all that may be streamed.
        layers: brings layers without their experts, and the head.
        layer_source: where it has them from.
        experts, expert_source: the same of experts; None where the model has none.
        embedding_reader: reads rows of the embedding.
    """

    parts: StreamedParts
    reader: DiskReader
    layers: WeightStream
    layer_source: ImageSource
    experts: ExpertStream | None = None
    expert_source: ImageSource | None = None
    embedding_reader: RangeReader

    def so_far(self) -> Streamed:
        """Returns how long was read, and waited for it, until now."""
        return Streamed(reading_seconds=self.reader.busy_seconds, waited_seconds=self.layers.waited_seconds)

    def part_bytes(self, points: Iterable[Point]) -> int:
        """Returns what the weights of `points`, with their experts, take where they are used."""
        points = list(points)
        own = sum(self.layers.part_bytes(point) for point in points)
        if self.experts is None:
            return own
        return own + sum(self.experts.layer_bytes(point.layer) for point in points if point.kind == "layer")

    def keep(self, points: Sequence[Point]) -> None:
        """Reads the weights of `points`, with their experts, into memory of their own, where they stay.

        Raises:
            CheckpointError: a file is gone, damaged, or has changed.
        """
        self.layers.keep(points)
        if self.experts is not None:
            self.experts.keep(point.layer for point in points if point.kind == "layer")

    def hold_on_host(self, points: Sequence[Point]) -> None:
        """Reads the weights of `points`, with their experts, into the memory of a device's host, where they stay.

        Raises:
            CheckpointError: a file is gone, damaged, or has changed.
        """
        images = [found for point in points for found in self.parts.of(point)]
        for source, kind in ((self.layer_source, Point), (self.expert_source, Expert)):
            if isinstance(source, HostImages):
                source.hold((key, image) for key, image in images if isinstance(key, kind))

    def close(self) -> None:
        """Ends all threads and gives memory back; a second call does nothing."""
        self.layers.close()
        if self.experts is not None:
            self.experts.close()
        self.reader.close()
        self.embedding_reader.close()


@dataclass(kw_only=True, slots=True)
class PlacedModel:
    """A model that can run.

    Attributes:
        points: where its micro-batches wait for weights, in order.
        streams: what brings the weights that do not stay; None where all do.
        kv: what brings the KV that is not in the pools.
        activations: what brings those of waiting micro-batches.
        moves: what moves the KV of preempted rows.
    """

    model: EngineModel
    points: tuple[Point, ...]
    streams: Streams | None = None
    kv: KVElsewhere = field(default_factory=NoKVElsewhere)
    activations: Activations = field(default_factory=ActivationsStay)
    moves: BlockMoves = field(default_factory=NoBlockMoves)

    @property
    def weights(self) -> Weights:
        """What makes the weights of layers and head present."""
        return ResidentWeights() if self.streams is None else self.streams.layers

    @property
    def experts(self) -> Experts:
        """What makes experts present."""
        return ResidentExperts() if self.streams is None or self.streams.experts is None else self.streams.experts

    def close(self) -> None:
        """Ends all threads and gives the memory of streams back; a second call does nothing."""
        self.activations.close()
        self.moves.close()
        self.kv.close()
        if self.streams is not None:
            self.streams.close()


def load_resident(
    model: PreTrainedModel, table: LayerTable, weights: WeightMap, dtype: torch.dtype, device: torch.device
) -> PlacedModel:
    """Loads all weights straight to `device`; they have been charged."""
    with WeightLoader(model, weights, allocate=allocate_on(device)) as loader:
        loader.load_all()
    move_buffers(model, device)
    if library_for(dtype, device) is not None:
        interleave_layers(model)
    return place_resident(model, table)


def place_resident(model: PreTrainedModel, table: LayerTable) -> PlacedModel:
    """Takes over a model whose weights are all there; they have been charged."""
    return PlacedModel(model=EngineModel(model, table), points=weight_points(table))


def weight_points(table: LayerTable, num_head_parts: int = 1, experts: Collection[int] = ()) -> tuple[Point, ...]:
    """Returns where micro-batches wait for weights, and for those of the experts of some layers."""
    before = [
        point
        for point in table.points()
        if (point.kind in WEIGHT_POINTS and point.kind != "head")
        or (point.kind == "experts" and point.layer in experts)
    ]
    return (*before, *(Point("head", part) for part in range(num_head_parts)))
