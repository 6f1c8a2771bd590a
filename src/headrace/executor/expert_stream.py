"""Where a mixture's experts come from: memory, or the tier below, in order or as tokens are routed to them."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headrace.executor.expert_uses import ExpertUses
from headrace.executor.image_sources import Expert, ImageSource
from headrace.models.brought_experts import ExpertTensors
from headrace.models.layer_image import LayerImage, TensorLayout
from headrace.models.layer_table import ExpertsSpec
from headrace.schedule.steps import Point
from headrace.storage.link import Buffer
from headrace.storage.transfer import Transfer

MOST_ON_DEMAND = 2 / 3
"""Of a layer's experts. Sweeps that are expected to need more read all of them in order: on demand a disk gave 0.77 of
its rate in order (virtual disk, 2.4 MB an expert, whatever the share), and nothing is read while experts compute."""


class Experts(Protocol):
    """Makes the experts that a micro-batch routes to present."""

    def follow(self, points: Sequence[Point], num_tokens: int) -> None:
        """Learns in which order a sweep of `num_tokens` tokens needs them; called before each."""

    def bring(self, layer: int, routing: Tensor) -> ExpertTensors | None:
        """Returns the experts of `routing` (T, k), which stay until the next call; None where the model has all."""

    def drop(self, layer: int) -> None:
        """Learns that the sweep has left the layer."""


class ResidentExperts:
    """All experts are in the model."""

    def follow(self, points: Sequence[Point], num_tokens: int) -> None:
        pass

    def bring(self, layer: int, routing: Tensor) -> None:
        return None

    def drop(self, layer: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Place:
    """Memory of one expert, and its bytes' way there."""

    buffer: Buffer
    transfer: Transfer


class ExpertStream:
    """Keeps experts of all layers in places of equal size; an expert stays until another one needs its place.

    A sweep that is expected to need most experts reads all of them in order, ahead of their use, into the next sweep
    too; the expert whose turn is farthest away gives way. Another sweep reads what its tokens are routed to; the expert
    that is used least gives way. An expert's bytes never change, so that a failed sweep leaves nothing to be undone.
    """

    def __init__(
        self,
        images: Mapping[int, Sequence[LayerImage]],
        *,
        spec: ExpertsSpec,
        source: ImageSource,
        num_places: int,
    ) -> None:
        """Takes memory for `num_places` experts: all that one micro-batch may need, which is those of a layer, or more.

        All files are opened: one that is missing is found now, and one that is deleted later stays readable.

        Args:
            images: of all experts of each layer that has any.

        Raises:
            CheckpointNotFoundError: a file is gone.
        """
        assert num_places >= spec.num_experts, "a micro-batch may need all experts of a layer"
        for experts in images.values():
            for image in experts:
                source.open(image)
        self._images = dict(images)
        self._spec = spec
        self._source = source
        self._layouts = {layer: [source.layout(image) for image in experts] for layer, experts in images.items()}
        size = max(layout.num_bytes for layouts in self._layouts.values() for layout in layouts)
        self._buffers = [source.allocate(size) for _ in range(num_places)]
        for buffer in self._buffers:
            # Takes the memory now, or the probe would find it to be taken by a sweep.
            buffer.tensor(0, (size,), torch.uint8).zero_()
            buffer.end_use()
        self._free = list(self._buffers)
        self._places: dict[Expert, _Place] = {}
        self._staying: dict[int, tuple[ExpertTensors, list[Buffer]]] = {}
        self._uses = ExpertUses()
        self._turns: dict[int, int] = {}
        self._position = 0
        self._in_order = False

    @property
    def num_bytes(self) -> int:
        """All experts that do not stay: what a sweep reads that needs every one."""
        return sum(image.read_bytes for experts in self._images.values() for image in experts)

    def layer_bytes(self, layer: int) -> int:
        """Returns what the experts of a layer take where they are used; 0 where it has none."""
        return sum(layout.num_bytes for layout in self._layouts.get(layer, ()))

    def follow(self, points: Sequence[Point], num_tokens: int) -> None:
        layers = [point.layer for point in points if point.kind == "experts" and point.layer in self._images]
        self._turns = {layer: turn for turn, layer in enumerate(layers)}
        self._position = 0
        self._in_order = self._spec.expected_share(num_tokens) > MOST_ON_DEMAND
        self._uses.next_sweep()
        held = {id(place.buffer) for place in self._places.values()}
        self._free = [buffer for buffer in self._buffers if id(buffer) not in held]  # a Ctrl-C may have lost one
        if self._in_order:
            self._read_ahead()

    def bring(self, layer: int, routing: Tensor) -> ExpertTensors | None:
        """Waits for experts.

        Raises:
            CheckpointError: a file is gone, damaged, or has changed; another `bring` tries again.
        """
        if layer in self._staying:
            return self._staying[layer][0]
        if layer not in self._images:
            return None
        wanted = [Expert(layer, index) for index in torch.unique(routing).tolist()]
        self._uses.note(wanted)
        missing = [expert for expert in wanted if expert not in self._places]
        self._make_room(len(missing), wanted)
        for expert in missing:  # all of them at once, so that the reader's threads share them
            self._begin(expert)
        try:
            return {expert.index: self._arrived(expert) for expert in wanted}
        except Exception:
            for expert in wanted:  # others may have failed, too
                self._evict(expert)
            raise

    def drop(self, layer: int) -> None:
        if layer in self._turns:
            self._position = (self._turns[layer] + 1) % len(self._turns)
            if self._in_order:
                self._read_ahead()

    def keep(self, layers: Iterable[int]) -> None:
        """Reads all experts of `layers` into memory of their own, where they stay.

        Raises:
            CheckpointError: a file is gone, damaged, or has changed.
        """
        for layer in layers:
            images, layouts = self._images.get(layer, ()), self._layouts.get(layer, ())
            buffers = [self._source.allocate(layout.num_bytes) for layout in layouts]
            arriving = [
                self._source.begin(Expert(layer, index), image, buffer)
                for index, (image, buffer) in enumerate(zip(images, buffers, strict=True))
            ]
            for transfer in arriving:
                transfer.wait()
            for expert in [expert for expert in self._places if expert.layer == layer]:
                self._evict(expert)
            if self._images.pop(layer, None) is not None:
                parts = zip(layouts, buffers, strict=True)
                self._staying[layer] = ({index: _tensors(*part) for index, part in enumerate(parts)}, buffers)
        self._turns = {}

    def close(self) -> None:
        """Gives all memory back; the model has no experts from here on."""
        for place in self._places.values():
            place.transfer.settle()
        self._places.clear()
        for buffer in (*self._buffers, *(buffer for _, buffers in self._staying.values() for buffer in buffers)):
            buffer.close()
        self._buffers, self._free, self._staying = [], [], {}
        self._source.close()

    def _read_ahead(self) -> None:
        """Begins to read what comes next, as long as a place is free or its expert's turn comes later still."""
        later = sorted(self._places, key=self._distance)
        layers = list(self._turns)
        for ahead, layer in enumerate(layers[self._position :] + layers[: self._position]):
            for index in range(len(self._images[layer])):
                expert = Expert(layer, index)
                if expert in self._places:
                    continue
                if not self._free:
                    if not later or self._distance(later[-1]) <= ahead:
                        return
                    self._evict(later.pop())
                self._begin(expert)

    def _make_room(self, num_places: int, needed: Collection[Expert]) -> None:
        """Frees as many places as are missing of `num_places`, none of those of `needed`."""
        count = num_places - len(self._free)
        if count > 0:
            others = self._places.keys() - set(needed)
            worth = self._turn if self._in_order else self._use_and_turn
            for expert in heapq.nsmallest(count, others, key=worth):
                self._evict(expert)

    def _distance(self, expert: Expert) -> int:
        """How many layers from here on the expert's turn comes; those that are in no sweep (a probe's) come last."""
        turn = self._turns.get(expert.layer)
        return len(self._turns) if turn is None else (turn - self._position) % len(self._turns)

    def _turn(self, expert: Expert) -> tuple[float, int]:
        return 0.0, -self._distance(expert)

    def _use_and_turn(self, expert: Expert) -> tuple[float, int]:
        return self._uses.of(expert), -self._distance(expert)

    def _begin(self, expert: Expert) -> None:
        buffer = self._free[-1]
        transfer = self._source.begin(expert, self._images[expert.layer][expert.index], buffer)
        self._places[expert] = _Place(buffer, transfer)
        self._free.pop()

    def _arrived(self, expert: Expert) -> Mapping[str, Tensor]:
        place = self._places[expert]
        place.transfer.wait()
        return _tensors(self._layouts[expert.layer][expert.index], place.buffer)

    def _evict(self, expert: Expert) -> None:
        place = self._places[expert]
        place.transfer.settle()  # the memory must not be read into any more
        place.buffer.end_use()  # nor written before the device has done what it was given
        del self._places[expert]
        self._free.append(place.buffer)


def _tensors(layout: TensorLayout, buffer: Buffer) -> dict[str, Tensor]:
    return {
        tensor.name: buffer.tensor(tensor.offset, tensor.shape, getattr(torch, tensor.dtype))
        for tensor in layout.tensors
    }
