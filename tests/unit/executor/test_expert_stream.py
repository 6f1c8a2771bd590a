"""Experts come in order or as they are needed, and stay as long as there are places."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headrace.checkpoint.gather import Gather
from headrace.checkpoint.safetensors_reader import read_header
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError
from headrace.executor.expert_stream import ExpertStream
from headrace.executor.image_sources import DiskImages, Expert, ImageKey
from headrace.models.layer_image import LayerImage, TensorLayout, expert_images
from headrace.models.layer_table import ExpertsSpec
from headrace.models.safetensors_file import write_tensors
from headrace.models.weight_map import ParameterSource
from headrace.schedule.steps import Point
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.disk_reader import DiskReader
from headrace.storage.link import Buffer
from headrace.storage.transfer import Transfer

NUM_LAYERS, NUM_EXPERTS = 3, 8
SPEC = ExpertsSpec(num_experts=NUM_EXPERTS, num_per_token=2)
POINTS = [Point(kind, layer) for layer in range(NUM_LAYERS) for kind in ("layer", "experts")]
ONE, MANY = 1, 100


class NotedImages(DiskImages):
    def __init__(self, reader: DiskReader) -> None:
        super().__init__(reader)
        self.begun: list[tuple[int, int]] = []
        self.transfers: list[Transfer] = []

    def begin(self, key: ImageKey, image: LayerImage, slot: Buffer) -> Transfer:
        assert isinstance(key, Expert) and isinstance(slot, AlignedBuffer)
        slot.bytes[:] = b"\xff" * slot.num_bytes  # NaN
        self.begun.append((key.layer, key.index))
        self.transfers.append(super().begin(key, image, slot))
        return self.transfers[-1]


class LateTransfer(Transfer):
    """Bytes that arrive only when someone waits for them."""

    def __init__(self) -> None:
        super().__init__("late", 1)

    def settle(self) -> None:
        if not self.is_complete:
            self.finish_part()
        super().settle()


class LateImages:
    """A source that is asked for nothing while something else is on its way to the same place."""

    def __init__(self) -> None:
        self.last: dict[int, Transfer] = {}

    def open(self, image: LayerImage) -> None:
        pass

    def layout(self, image: LayerImage) -> TensorLayout:
        return image.layout

    def allocate(self, num_bytes: int) -> AlignedBuffer:
        return AlignedBuffer(num_bytes)

    def begin(self, key: ImageKey, image: LayerImage, slot: Buffer) -> Transfer:
        assert id(slot) not in self.last or self.last[id(slot)].is_complete
        self.last[id(slot)] = LateTransfer()
        return self.last[id(slot)]

    def close(self) -> None:
        pass


class Rig:
    """Three layers of eight experts with two merged parameters each, in a file per layer."""

    def __init__(self, folder: Path, num_places: int) -> None:
        self.files = [folder / f"{layer}.safetensors" for layer in range(NUM_LAYERS)]
        self.saved: dict[str, torch.Tensor] = {}
        images = {}
        for layer, file in enumerate(self.files):
            tensors = {
                f"layers.{layer}.up": torch.randn(NUM_EXPERTS, 6, 4),
                f"layers.{layer}.down": torch.randn(NUM_EXPERTS, 4, 3),
            }
            write_tensors(file, tensors)
            self.saved |= tensors
            images[layer] = expert_images(
                layer,
                [
                    ParameterSource(
                        name=entry.name, shape=entry.shape, dtype="float32", group=layer, content=Gather.whole(entry)
                    )
                    for entry in read_header(file)
                ],
            )
        self.images = images
        self.reader = DiskReader()
        self.source = NotedImages(self.reader)
        self.stream = ExpertStream(images, spec=SPEC, source=self.source, num_places=num_places)

    def bring(self, layer: int, *experts: int) -> list[tuple[int, int]]:
        """Brings experts, checks that they are as they were saved, and returns what was read for them."""
        before = len(self.source.begun)
        brought = self.stream.bring(layer, torch.tensor([experts, experts[::-1]]))
        assert brought is not None and set(brought) == set(experts)
        for index, tensors in brought.items():
            assert tensors.keys() == {f"layers.{layer}.up", f"layers.{layer}.down"}
            assert all(torch.equal(tensor, self.saved[name][index]) for name, tensor in tensors.items())
        return self.source.begun[before:]

    def close(self) -> None:
        self.stream.close()
        self.reader.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, num_places=NUM_EXPERTS + 2)
    yield made
    made.close()


def all_of(layer: int) -> list[tuple[int, int]]:
    return [(layer, index) for index in range(NUM_EXPERTS)]


def test_a_small_sweep_reads_what_is_routed_to_and_only_once(rig: Rig) -> None:
    rig.stream.follow(POINTS, ONE)
    assert rig.source.begun == []
    assert rig.bring(1, 5, 2) == [(1, 2), (1, 5)]
    assert rig.bring(1, 2, 7) == [(1, 7)]
    rig.stream.drop(1)
    rig.stream.follow(POINTS, ONE)
    assert rig.bring(1, 5, 7) == []


def test_a_large_sweep_reads_ahead_in_order_as_far_as_there_are_places(rig: Rig) -> None:
    rig.stream.follow(POINTS, MANY)
    assert rig.source.begun == [*all_of(0), (1, 0), (1, 1)]
    for layer in range(NUM_LAYERS):
        assert rig.bring(layer, *range(NUM_EXPERTS)) == []
        rig.stream.drop(layer)
    # As each layer is left its places are taken by what comes next, which after the last layer is the next sweep.
    assert rig.source.begun == [*all_of(0), *all_of(1), *all_of(2), *all_of(0), (1, 0), (1, 1)]


def test_reading_ahead_drops_nothing_that_is_needed_as_soon(tmp_path: Path) -> None:
    rig = Rig(tmp_path, num_places=2 * NUM_EXPERTS + 2)
    rig.stream.follow(POINTS, ONE)
    rig.bring(2, 5, 6)
    rig.source.begun.clear()
    rig.stream.follow(POINTS, MANY)
    assert rig.source.begun == [*all_of(0), *all_of(1)]
    rig.close()


def test_sweeps_of_any_size_can_follow_each_other(rig: Rig) -> None:
    for num_tokens in (MANY, ONE, ONE, MANY, MANY, ONE):
        rig.stream.follow(POINTS, num_tokens)
        for layer in range(NUM_LAYERS):
            rig.bring(layer, *(range(NUM_EXPERTS) if num_tokens == MANY else (3, 4)))
            rig.stream.drop(layer)


def test_the_expert_that_is_used_least_gives_way(rig: Rig) -> None:
    for _ in range(3):
        rig.stream.follow(POINTS, ONE)
        rig.bring(0, 1, 2)
        rig.stream.drop(0)
    rig.bring(2, *range(NUM_EXPERTS))
    rig.stream.follow(POINTS, ONE)
    rig.bring(0, 1, 2)
    rig.stream.drop(0)
    assert rig.bring(1, 0, 1) == [(1, 0), (1, 1)]
    rig.stream.follow(POINTS, ONE)
    assert rig.bring(0, 1, 2) == [], "these were used in every sweep"


def test_what_a_micro_batch_needs_does_not_give_way_to_what_else_it_needs(rig: Rig) -> None:
    rig.stream.follow(POINTS, ONE)
    rig.bring(0, 0)
    for _ in range(4):
        rig.stream.follow(POINTS, ONE)
        rig.bring(1, *range(NUM_EXPERTS))
    assert rig.bring(0, 0, 1, 2) == [(0, 1), (0, 2)]


def test_among_equals_the_expert_whose_turn_is_farthest_away_gives_way(rig: Rig) -> None:
    rig.stream.follow(POINTS, ONE)
    rig.bring(0, *range(4))
    rig.stream.drop(0)
    rig.bring(1, *range(6))
    rig.stream.drop(1)
    rig.bring(2, 0, 1, 2)
    rig.stream.drop(2)
    rig.stream.follow(POINTS, ONE)
    assert rig.bring(0, *range(4)) == [], "the next sweep needs these first"


def test_all_experts_of_a_layer_fit_into_the_fewest_places(tmp_path: Path) -> None:
    rig = Rig(tmp_path, num_places=NUM_EXPERTS)
    for num_tokens in (ONE, MANY, MANY):
        rig.stream.follow(POINTS, num_tokens)
        for layer in range(NUM_LAYERS):
            rig.bring(layer, *range(NUM_EXPERTS))
            rig.stream.drop(layer)
    rig.close()


def test_fewer_places_than_a_layer_has_experts_is_our_mistake(rig: Rig) -> None:
    with pytest.raises(AssertionError, match="all experts of a layer"):
        ExpertStream(rig.images, spec=SPEC, source=rig.source, num_places=NUM_EXPERTS - 1)


def test_layers_that_are_kept_are_not_read_again(rig: Rig) -> None:
    rig.stream.follow(POINTS, MANY)
    num_bytes = rig.stream.num_bytes
    rig.stream.keep([1])
    assert rig.stream.num_bytes == num_bytes * 2 // 3
    rig.source.begun.clear()
    for num_tokens in (MANY, ONE):
        rig.stream.follow(POINTS, num_tokens)
        for layer in range(NUM_LAYERS):
            rig.bring(layer, *range(NUM_EXPERTS))
            rig.stream.drop(layer)
    assert not any(layer == 1 for layer, _ in rig.source.begun)


def test_nothing_is_read_to_where_something_else_is_still_on_its_way(rig: Rig) -> None:
    stream = ExpertStream(rig.images, spec=SPEC, source=LateImages(), num_places=NUM_EXPERTS + 2)
    for num_tokens in (MANY, ONE):
        stream.follow(POINTS, num_tokens)
        stream.bring(2, torch.arange(NUM_EXPERTS))
    stream.close()


def test_a_layer_without_experts_has_none_to_bring(rig: Rig) -> None:
    assert rig.stream.bring(NUM_LAYERS, torch.tensor([[0]])) is None
    rig.stream.drop(NUM_LAYERS)


def test_a_reading_that_fails_is_told_and_tried_again(rig: Rig) -> None:
    content, state = rig.files[1].read_bytes(), rig.files[1].stat()
    rig.files[1].write_bytes(content[:100])
    for num_tokens in (ONE, MANY):
        rig.stream.follow(POINTS, num_tokens)
        with pytest.raises(CorruptCheckpointError, match="changed while it was in use"):
            rig.bring(1, 2, 3)
    rig.stream.follow(POINTS, ONE)
    assert rig.bring(0, *range(NUM_EXPERTS)) == [], "what is whole stays"
    rig.files[1].write_bytes(content)
    os.utime(rig.files[1], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert rig.bring(1, 2, 3) == [(1, 2), (1, 3)]


def test_a_file_that_is_gone_is_found_before_anything_is_read(rig: Rig) -> None:
    rig.files[2].unlink()
    with DiskReader() as reader, pytest.raises(CheckpointNotFoundError, match=r"2\.safetensors"):
        ExpertStream(rig.images, spec=SPEC, source=DiskImages(reader), num_places=NUM_EXPERTS)


def test_closing_waits_for_what_is_on_its_way_and_gives_all_memory_back(tmp_path: Path) -> None:
    before = threading.active_count()
    rig = Rig(tmp_path, num_places=2 * NUM_EXPERTS)
    rig.stream.keep([0])
    rig.stream.follow(POINTS, MANY)
    buffers = list(rig.stream._buffers)
    rig.stream.close()
    assert all(transfer.is_complete for transfer in rig.source.transfers)
    assert all(buffer._map.closed for buffer in buffers)
    rig.close()
    assert threading.active_count() == before
