"""Decides whether a model's weights all stay in memory, and puts together what brings the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headrace.checkpoint.reader import RangeReader
from headrace.engine.memory import TYPICAL_TOKENS, SweepPlan, row_bytes
from headrace.executor.probe import WEIGHT_POINTS
from headrace.executor.weight_stream import ResidentWeights, Weights, WeightStream
from headrace.models.disk_embedding import keep_embedding_on_disk
from headrace.models.layer_image import LayerImage, layer_image, row_images
from headrace.models.layer_table import LayerTable
from headrace.models.parameter_places import ParameterPlaces
from headrace.models.takeover import EngineModel
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_copies import groups_to_copy, with_copies
from headrace.models.weight_map import ParameterSource, WeightMap
from headrace.models.weights import WeightLoader, move_buffers
from headrace.planner.calibration import measure_matrix_rate
from headrace.planner.calibration_store import calibrated_rates
from headrace.planner.placement import Demand, Rates, resident_parts
from headrace.schedule.steps import Point
from headrace.storage.aligned import PAGE_BYTES
from headrace.storage.budget import Budget
from headrace.storage.disk_reader import BLOCK_BYTES, NUM_THREADS, STAGING_BYTES, DiskReader
from headrace.storage.folders import DiskTier
from headrace.storage.throttle import Throttle

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
        streamed: the parts of the model that a sweep reads, in order, and where.
    """

    model: EngineModel
    weights: Weights
    points: tuple[Point, ...]
    stream: WeightStream | None = None
    reader: DiskReader | None = None
    images: dict[Point, LayerImage]

    @property
    def streamed_bytes(self) -> int:
        """What every sweep reads from the disk."""
        return 0 if self.stream is None else self.stream.bytes_per_sweep

    def close(self) -> None:
        """Ends the stream's threads and gives its memory back; a second call does nothing."""
        if self.stream is not None and self.reader is not None:
            self.stream.close()
            self.reader.close()


def load_resident(model: PreTrainedModel, table: LayerTable, weights: WeightMap, device: torch.device) -> PlacedModel:
    """Loads all weights straight to `device`; they have been charged."""

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    with WeightLoader(model, weights, allocate=allocate) as loader:
        loader.load_all()
    if device.type != "cpu":
        move_buffers(model, device)
    return PlacedModel(model=EngineModel(model, table), weights=ResidentWeights(), points=_points(table, 1), images={})


def open_stream(
    model: PreTrainedModel,
    table: LayerTable,
    weights: WeightMap,
    budget: Budget,
    disk: DiskTier,
    throttle: Throttle | None = None,
) -> PlacedModel:
    """Prepares all layers and the head to be streamed, and the embedding to be read by rows; loads what is left.

    What cannot be streamed from the checkpoint's own files is copied to `disk` first, unless the copy is there already.
    All that sweeps read passes `throttle`.

    Raises:
        BudgetError: not even that fits.
        CheckpointError: a file is gone.
        DiskSpaceError: there is no room for the copies.
    """
    weights = with_copies(model, weights, disk)
    images = {
        Point("layer", index): layer_image(f"layer {index}", weights.in_group(index))
        for index in range(weights.num_layers)
    }
    slot_bytes = max(image.num_bytes for image in images.values())
    heads = row_images("head", _head_sources(weights), slot_bytes)
    images |= {Point("head", index): image for index, image in enumerate(heads)}
    reader = DiskReader(throttle=throttle)
    try:
        budget.charge("weights", weights.group_bytes("rest"))
        num_slots = max(_LEAST_SLOTS, min(_MOST_SLOTS, int(_SLOTS_SHARE * budget.free_bytes / slot_bytes)))
        budget.charge("staging", num_slots * slot_bytes + STAGING_BYTES)
        places = ParameterPlaces(model, weights)
        with WeightLoader(model, weights, places=places) as loader:
            loader.load("rest")
        keep_embedding_on_disk(model, _embedding_source(weights), RangeReader(throttle))
        stream = WeightStream(images, places=places, reader=reader, num_slots=num_slots)
    except BaseException:
        reader.close()
        raise
    return PlacedModel(
        model=EngineModel(model, table, num_head_parts=len(heads)),
        weights=stream,
        points=_points(table, len(heads)),
        stream=stream,
        reader=reader,
        images=images,
    )


def least_stream_bytes(weights: WeightMap) -> int:
    """Returns what `open_stream` needs at least, and what making the copies does before."""
    slot_bytes = max(_image_bytes(weights.in_group(index)) for index in range(weights.num_layers))
    copying = max((weights.group_bytes(group) for group in groups_to_copy(weights)), default=0)
    return max(copying, weights.group_bytes("rest") + _LEAST_SLOTS * slot_bytes + STAGING_BYTES)


def keep_what_fits(
    placed: PlacedModel,
    table: LayerTable,
    weights: WeightMap,
    budget: Budget,
    sweep: SweepPlan,
    block_tokens: int,
    dtype: torch.dtype,
) -> None:
    """Divides what is left between weights that stay and KV, and loads the former."""
    assert placed.stream is not None and placed.reader is not None
    points = list(placed.images)
    num_numbers = sum(source.num_bytes for source in weights.parameters.values()) // dtype.itemsize
    typical = min(sweep.context_tokens, TYPICAL_TOKENS)
    demand = Demand(
        part_bytes=[placed.images[point].num_bytes for point in points],
        row_bytes=row_bytes(
            table=table, dtype_bytes=dtype.itemsize, block_tokens=block_tokens, sweep=sweep, num_tokens=typical
        ),
        max_rows=sweep.max_num_seqs,
        operations_per_token=2.0 * num_numbers,
    )
    rates = _rates(placed.reader, placed.images[points[0]], dtype)
    kept = [points[index] for index in sorted(resident_parts(demand, rates, budget.free_bytes))]
    budget.charge("weights", sum(placed.images[point].num_bytes for point in kept))
    placed.stream.keep(kept)


def _rates(reader: DiskReader, image: LayerImage, dtype: torch.dtype) -> Rates:
    """Those of the last calibration of this machine and the image's disk; else of what was read so far, and of now."""
    found = calibrated_rates(
        image.ranges[0].file, dtype=str(dtype).removeprefix("torch."), num_threads=NUM_THREADS, block_bytes=BLOCK_BYTES
    )
    if found is None:
        return Rates(disk=reader.bytes_per_second, matrix=measure_matrix_rate(torch.device("cpu"), dtype))
    if reader.throttle is None:
        return found
    return replace(found, disk=min(found.disk, reader.throttle.bytes_per_second))


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
