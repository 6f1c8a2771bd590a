"""Images come to a device from the host or, by way of it, from disk; each tensor to a place that devices like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.errors import CheckpointNotFoundError
from headrace.executor.image_sources import HostImages
from headrace.models.layer_image import LayerImage, layer_image
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_map import build_weight_map
from headrace.schedule.steps import Point
from headrace.storage.cuda_link import CudaLink
from headrace.storage.disk_reader import DiskReader
from headrace.storage.link import Buffer
from tests.late_runtime import LateRuntime
from tests.tiny_models import save_tiny

LAYERS = [Point("layer", index) for index in range(3)]


class Rig:
    """A tiny model's layers, a device, and what brings the ones to the other."""

    def __init__(self, folder: Path) -> None:
        self.saved = save_tiny("llama", folder, max_shard_size="80KB").state_dict()
        weights = build_weight_map(build_skeleton(folder, torch.float32), Checkpoint.open(folder))
        self.images: dict[Point, LayerImage] = {
            point: layer_image(f"layer {point.layer}", weights.in_group(point.layer)) for point in LAYERS
        }
        self.runtime = LateRuntime()
        self.reader, self.link = DiskReader(), CudaLink(self.runtime)
        staging_bytes = max(image.num_bytes for image in self.images.values())
        self.source = HostImages(self.reader, self.link, num_staging=2, staging_bytes=staging_bytes)

    def slot(self) -> Buffer:
        return self.source.allocate(max(self.source.layout(image).num_bytes for image in self.images.values()))

    def holds(self, slot: Buffer, point: Point) -> bool:
        return all(
            torch.equal(slot.tensor(tensor.offset, tensor.shape, torch.float32), self.saved[tensor.name])
            for tensor in self.source.layout(self.images[point]).tensors
        )

    def close(self) -> None:
        self.source.close()
        self.source.close()
        self.reader.close()
        self.link.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()
    assert not made.runtime.pinned


def test_more_images_than_there_is_staging_come_from_disk_in_order(rig: Rig) -> None:
    slots = [rig.slot() for _ in range(6)]
    points = [*LAYERS, *LAYERS]
    transfers = [rig.source.begin(point, rig.images[point], slot) for point, slot in zip(points, slots, strict=True)]
    for point, slot, transfer in zip(points, slots, transfers, strict=True):
        transfer.wait()
        assert rig.holds(slot, point)
    assert len(rig.runtime.pinned) == 2


def test_an_image_that_the_host_holds_is_not_read_again(rig: Rig) -> None:
    rig.source.hold([(LAYERS[1], rig.images[LAYERS[1]])])
    num_bytes, slot = rig.reader.num_bytes, rig.slot()
    rig.source.begin(LAYERS[1], rig.images[LAYERS[1]], slot).wait()
    assert rig.holds(slot, LAYERS[1]) and rig.reader.num_bytes == num_bytes


def test_a_file_that_is_gone_costs_no_staging(rig: Rig) -> None:
    for part in rig.images[LAYERS[2]].ranges:
        part.file.rename(part.file.with_suffix(".away"))
    for _ in range(3):
        with pytest.raises(CheckpointNotFoundError):
            rig.source.begin(LAYERS[2], rig.images[LAYERS[2]], rig.slot())
