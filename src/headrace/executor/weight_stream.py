"""Where a sweep's weights come from: memory, or the disk through a ring of slots, read ahead of their use."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from headrace.executor.image_sources import ImageSource
from headrace.models.layer_image import LayerImage, TensorLayout
from headrace.models.parameter_places import ParameterPlaces
from headrace.schedule.steps import Point
from headrace.storage.link import Buffer
from headrace.storage.transfer import Transfer


class Weights(Protocol):
    """Makes the weights of a stage present."""

    def follow(self, points: Sequence[Point]) -> None:
        """Learns in which order the next sweeps need them, again and again."""

    def bring(self, point: Point) -> None:
        """Returns when the weights of `point`'s stage are in their modules."""

    def drop(self, point: Point) -> None:
        """Takes them out again, unless they stay."""


class ResidentWeights:
    """All weights are in memory."""

    def follow(self, points: Sequence[Point]) -> None:
        pass

    def bring(self, point: Point) -> None:
        pass

    def drop(self, point: Point) -> None:
        pass


@dataclass(slots=True)
class _Slot:
    """A part of the ring: its memory, and what is on its way there or has arrived."""

    buffer: Buffer
    point: Point
    transfer: Transfer


class WeightStream:
    """Reads images in the order of the sweeps, as far ahead as there are slots; after a sweep comes the next.

    A slot is free again when its stage is dropped, which is when the next reading begins: it overlaps the computing of
    all micro-batches on the stages that have arrived.

    Attributes:
        waited_seconds: for images that had not arrived when they were needed.
    """

    def __init__(
        self,
        images: Mapping[Point, LayerImage],
        *,
        places: ParameterPlaces,
        source: ImageSource,
        num_slots: int,
    ) -> None:
        """Takes memory for `num_slots` slots, each for the largest image. Two are needed for reading to overlap.

        All files are opened: one that is missing is found now, and one that is deleted later stays readable.

        Raises:
            CheckpointNotFoundError: a file is gone.
        """
        for image in images.values():
            source.open(image)
        self._images = dict(images)
        self._places = places
        self._source = source
        self._layouts = {point: source.layout(image) for point, image in images.items()}
        size = max(layout.num_bytes for layout in self._layouts.values())
        self._buffers = [source.allocate(size) for _ in range(num_slots)]
        self._free = list(self._buffers)
        self._ahead: deque[_Slot] = deque()
        self._present: dict[Point, _Slot] = {}
        self._staying: dict[Point, tuple[TensorLayout, Buffer]] = {}
        self._followed: Sequence[Point] = ()
        self._order: list[Point] = []
        self._next = 0
        self.waited_seconds = 0.0

    @property
    def bytes_per_sweep(self) -> int:
        """What a sweep reads."""
        return sum(image.read_bytes for image in self._images.values())

    def part_bytes(self, point: Point) -> int:
        """Returns what the weights of `point` take where they are used."""
        return self._layouts[point].num_bytes

    def streams(self, point: Point) -> bool:
        """Whether the weights of `point` are brought in every sweep."""
        return point in self._images

    def follow(self, points: Sequence[Point]) -> None:
        if points is self._followed:
            return
        self._followed = points
        self._order = [point for point in points if point in self._images]
        self._restart(self._order[0] if self._order else None)

    def bring(self, point: Point) -> None:
        """Waits for the images of a streamed stage.

        Raises:
            CheckpointError: its file is gone, damaged, or has changed; another `bring` tries again.
        """
        if point in self._staying:
            self._put(*self._staying[point])  # again, since parts of a head take turns in one place
        if point not in self._images:
            return
        if point in self._present:
            self.drop(point)
        if not self._ahead or self._ahead[0].point != point:  # a sweep that failed left its order
            self._restart(point)
        slot = self._ahead[0]
        started = time.perf_counter()
        try:
            slot.transfer.wait()
        except BaseException:
            self._restart(None)
            raise
        self.waited_seconds += time.perf_counter() - started
        self._ahead.popleft()
        self._present[point] = slot
        self._put(self._layouts[point], slot.buffer)

    def drop(self, point: Point) -> None:
        slot = self._present.pop(point, None)
        if slot is None:
            return
        for tensor in self._images[point].tensors:
            self._places.take_out(tensor.name, tensor.shape, tensor.dtype)
        slot.buffer.end_use()
        self._free.append(slot.buffer)
        self._read_ahead()

    def keep(self, points: Iterable[Point]) -> None:
        """Reads the images of `points` into memory of their own, where they stay.

        Raises:
            CheckpointError: a file is gone, damaged, or has changed.
        """
        self._restart(None)
        self._followed = ()
        for point in points:
            buffer = self._source.allocate(self._layouts[point].num_bytes)
            transfer = self._source.begin(point, self._images[point], buffer)
            transfer.settle()
            transfer.wait()
            self._staying[point] = (self._layouts[point], buffer)
            del self._images[point]

    def close(self) -> None:
        """Gives all memory back; the model has no weights from here on."""
        for point in list(self._present):
            self.drop(point)
        self._restart(None)
        for buffer in (*self._buffers, *(buffer for _, buffer in self._staying.values())):
            buffer.close()
        self._buffers, self._free, self._staying = [], [], {}
        self._source.close()

    def _restart(self, point: Point | None) -> None:
        """Gives up what is on its way or was left by a failed sweep, and begins again at `point`, if there is one."""
        for slot in self._present.values():
            slot.transfer.settle()
        self._present.clear()
        while self._ahead:
            self._ahead[0].transfer.settle()  # the memory must not be read into any more
            self._ahead.popleft()
        self._free = list(self._buffers)  # those, too, that a Ctrl-C left between two places
        for buffer in self._free:
            buffer.end_use()  # what a failed sweep has given to a device may be looking at them yet
        if point is not None:
            self._next = self._order.index(point)
            self._read_ahead()

    def _read_ahead(self) -> None:
        while self._free and len(self._ahead) + len(self._present) < len(self._order):
            point = self._order[self._next]
            image = self._images[point]
            transfer = self._source.begin(point, image, self._free[-1])
            self._ahead.append(_Slot(self._free.pop(), point, transfer))
            self._next = (self._next + 1) % len(self._order)

    def _put(self, layout: TensorLayout, buffer: Buffer) -> None:
        for tensor in layout.tensors:
            value = buffer.tensor(tensor.offset, tensor.shape, getattr(torch, tensor.dtype))
            self._places.put(tensor.name, value)
