"""Where the images of streamed weights are before they are brought: on disk, or in the memory of the host."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from headrace.models.layer_image import LayerImage, TensorLayout, aligned_layout
from headrace.schedule.steps import Point
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.disk_reader import DiskReader
from headrace.storage.link import Buffer, Link, Part
from headrace.storage.transfer import Transfer


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert of a layer."""

    layer: int
    index: int


ImageKey = Point | Expert
"""What an image is of."""


class ImageSource(Protocol):
    """Fills slots with images."""

    def open(self, image: LayerImage) -> None:
        """Opens an image's files before they are needed.

        Raises:
            CheckpointNotFoundError: a file is gone.
        """

    def layout(self, image: LayerImage) -> TensorLayout:
        """Returns where an image's tensors will lie in a slot."""

    def allocate(self, num_bytes: int) -> Buffer:
        """Returns memory for a slot."""

    def begin(self, key: ImageKey, image: LayerImage, slot: Buffer) -> Transfer:
        """Begins to bring the image of `key` into `slot`, which nobody uses."""

    def close(self) -> None:
        """Gives memory of its own back; a second call does nothing."""


class DiskImages:
    """Reads images straight to where they are used: without a device, that is host memory."""

    def __init__(self, reader: DiskReader) -> None:
        self._reader = reader

    def open(self, image: LayerImage) -> None:
        _open(image, self._reader)

    def layout(self, image: LayerImage) -> TensorLayout:
        return image.layout

    def allocate(self, num_bytes: int) -> AlignedBuffer:
        return AlignedBuffer(num_bytes)

    def begin(self, key: ImageKey, image: LayerImage, slot: Buffer) -> Transfer:
        assert isinstance(slot, AlignedBuffer)
        return self._reader.read(image.what, image.ranges, slot.bytes)

    def close(self) -> None:
        pass


class HostImages:
    """Sends images over a link: those that the host holds at once, the others when they have come from disk.

    Each tensor is sent by itself, so that it lies on the device as devices like it, whatever the files are like.
    """

    def __init__(self, reader: DiskReader, link: Link, *, num_staging: int, staging_bytes: int) -> None:
        """Takes memory of the host for `num_staging` images under way from disk; `staging_bytes` hold any image."""
        self._reader = reader
        self._link = link
        self._held: dict[ImageKey, AlignedBuffer] = {}
        self._staging = [link.host_memory(staging_bytes) for _ in range(num_staging)]
        self._free: queue.SimpleQueue[AlignedBuffer] = queue.SimpleQueue()
        for buffer in self._staging:
            self._free.put(buffer)

    def open(self, image: LayerImage) -> None:
        _open(image, self._reader)

    def layout(self, image: LayerImage) -> TensorLayout:
        return aligned_layout(image)

    def allocate(self, num_bytes: int) -> Buffer:
        return self._link.device_memory(num_bytes)

    def hold(self, images: Iterable[tuple[ImageKey, LayerImage]]) -> None:
        """Reads images into host memory, where they stay.

        Raises:
            CheckpointError: a file is gone, damaged, or has changed.
        """
        for key, image in images:
            buffer = self._link.host_memory(image.num_bytes)
            self._held[key] = buffer
            self._reader.read(image.what, image.ranges, buffer.bytes).wait()

    def begin(self, key: ImageKey, image: LayerImage, slot: Buffer) -> Transfer:
        held = self._held.get(key)
        if held is not None:
            return self._link.upload(image.what, slot, self._parts(image, held))
        staging = self._free.get()  # where all are under way, one comes free without our doing
        try:
            arrived = self._reader.read(image.what, image.ranges, staging.bytes)
        except Exception:  # nothing was begun; of a Ctrl-C that is not certain, and the buffer is better lost then
            self._free.put(staging)
            raise
        return self._link.upload(
            image.what, slot, self._parts(image, staging), after=arrived, release=lambda: self._free.put(staging)
        )

    def close(self) -> None:
        for buffer in (*self._held.values(), *self._staging):
            buffer.close()
        self._held.clear()
        self._staging.clear()

    def _parts(self, image: LayerImage, host: AlignedBuffer) -> list[Part]:
        return [
            (there.offset, host.bytes[here.offset : here.offset + here.num_bytes])
            for there, here in zip(self.layout(image).tensors, image.tensors, strict=True)
            if here.num_bytes
        ]


def _open(image: LayerImage, reader: DiskReader) -> None:
    for part in image.ranges:
        reader.open(part.file)
