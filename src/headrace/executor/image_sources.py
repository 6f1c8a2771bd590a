"""Where the images of streamed weights are before they are brought: on disk, or in the memory of the host."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from headrace.models.layer_image import LayerImage
from headrace.schedule.steps import Point
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.disk_reader import DiskReader
from headrace.storage.simulated_device import SimulatedLink
from headrace.storage.transfer import Transfer


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert of a layer."""

    layer: int
    index: int


Part = Point | Expert
"""What an image is of."""


class ImageSource(Protocol):
    """Fills slots with images."""

    def open(self, image: LayerImage) -> None:
        """Opens an image's files before they are needed.

        Raises:
            CheckpointNotFoundError: a file is gone.
        """

    def begin(self, part: Part, image: LayerImage, slot: AlignedBuffer) -> Transfer:
        """Begins to bring the image of `part` into `slot`."""

    def close(self) -> None:
        """Gives memory of its own back; a second call does nothing."""


class DiskImages:
    """Reads images straight to where they are used: without a device, that is host memory."""

    def __init__(self, reader: DiskReader) -> None:
        self._reader = reader

    def open(self, image: LayerImage) -> None:
        _open(image, self._reader)

    def begin(self, part: Part, image: LayerImage, slot: AlignedBuffer) -> Transfer:
        return self._reader.read(image.what, image.ranges, slot.bytes)

    def close(self) -> None:
        pass


class HostImages:
    """Sends images over a link: those that the host holds at once, the others when they have come from disk."""

    def __init__(self, reader: DiskReader, link: SimulatedLink, *, staging_bytes: int) -> None:
        """`staging_bytes` hold any image; there are as many such buffers as images under way from disk."""
        self._reader = reader
        self._link = link
        self._staging_bytes = staging_bytes
        self._held: dict[Part, AlignedBuffer] = {}
        self._staging: queue.SimpleQueue[AlignedBuffer] = queue.SimpleQueue()

    def open(self, image: LayerImage) -> None:
        _open(image, self._reader)

    def hold(self, images: Iterable[tuple[Part, LayerImage]]) -> None:
        """Reads images into host memory, where they stay.

        Raises:
            CheckpointError: a file is gone, damaged, or has changed.
        """
        for part, image in images:
            buffer = AlignedBuffer(image.num_bytes)
            self._reader.read(image.what, image.ranges, buffer.bytes).wait()
            self._held[part] = buffer

    def begin(self, part: Part, image: LayerImage, slot: AlignedBuffer) -> Transfer:
        target = slot.bytes[: image.num_bytes]
        held = self._held.get(part)
        if held is not None:
            return self._link.upload(image.what, [(target, held.bytes[: image.num_bytes])])
        try:
            staging = self._staging.get_nowait()
        except queue.Empty:
            staging = AlignedBuffer(self._staging_bytes)
        arrived = self._reader.read(image.what, image.ranges, staging.bytes)
        source = staging.bytes[: image.num_bytes]
        return self._link.upload(
            image.what, [(target, source)], after=arrived, release=lambda: self._staging.put(staging)
        )

    def close(self) -> None:
        for buffer in self._held.values():
            buffer.close()
        self._held.clear()
        while not self._staging.empty():
            self._staging.get().close()


def _open(image: LayerImage, reader: DiskReader) -> None:
    for part in image.ranges:
        reader.open(part.file)
