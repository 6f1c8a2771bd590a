"""Weights arrive in the order of the sweeps, read ahead of their use, and go again."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError
from headrace.executor.image_sources import DiskImages
from headrace.executor.weight_stream import WeightStream
from headrace.models.layer_image import LayerImage, layer_image
from headrace.models.parameter_places import ParameterPlaces
from headrace.models.skeleton import build_skeleton
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import WeightMap, build_weight_map
from headrace.schedule.steps import Point
from headrace.storage.disk_reader import DiskReader, FileRange
from headrace.storage.transfer import Transfer
from tests.tiny_models import save_tiny

LAYERS = [Point("layer", index) for index in range(3)]
POINTS = [Point("embedding", 0), *LAYERS, Point("head", 0)]


class NotingReader(DiskReader):
    """A reader that also remembers what was asked of it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.transfers: list[Transfer] = []

    def read(self, what: str, ranges: Sequence[FileRange], buffer: memoryview) -> Transfer:
        transfer = super().read(what, ranges, buffer)
        self.asked.append(what)
        self.transfers.append(transfer)
        return transfer


class InterruptedPlaces(ParameterPlaces):
    """Places at which a Ctrl-C arrives while a parameter is put or taken out, when `interrupts` says so."""

    interrupts = ""

    def put(self, name: str, tensor: torch.Tensor) -> None:
        self._interrupt("put")
        super().put(name, tensor)

    def take_out(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self._interrupt("take out")
        super().take_out(name, shape, dtype)

    def _interrupt(self, what: str) -> None:
        if self.interrupts == what:
            self.interrupts = ""
            raise KeyboardInterrupt


class Rig:
    """A tiny model none of whose layers is in memory, and what streams them."""

    def __init__(self, folder: Path, num_slots: int) -> None:
        self.saved = save_tiny("llama", folder, max_shard_size="80KB").state_dict()
        self.model: PreTrainedModel = build_skeleton(folder, torch.float32)
        self.weights: WeightMap = build_weight_map(self.model, Checkpoint.open(folder))
        self.images: dict[Point, LayerImage] = {
            point: layer_image(f"layer {point.layer}", self.weights.in_group(point.layer)) for point in LAYERS
        }
        self.reader = NotingReader()
        self.places = InterruptedPlaces(self.model, self.weights)
        self.stream = WeightStream(
            self.images,
            places=self.places,
            source=DiskImages(self.reader),
            num_slots=num_slots,
        )

    def is_there(self, point: Point) -> bool:
        """Whether a layer's parameters are in the model, all of them and as they were saved."""
        state = self.model.state_dict()
        names = [tensor.name for tensor in self.images[point].tensors]
        there = {not state[name].is_meta for name in names}
        assert len(there) == 1, f"{point} is there in part"
        return there == {True} and all(torch.equal(state[name], self.saved[name]) for name in names)

    def sweep(self) -> None:
        self.stream.follow(POINTS)
        for point in POINTS:
            self.stream.bring(point)
            if point in self.images:
                assert self.is_there(point)
            self.stream.drop(point)

    def file_of_the_last(self) -> Path:
        """A file that the last layer needs and no other one does."""
        first, second, last = ({part.file for part in self.images[point].ranges} for point in LAYERS)
        return (last - first - second).pop()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, num_slots=2)
    yield made
    made.stream.close()
    made.reader.close()


def test_a_layer_is_in_the_model_from_bringing_to_dropping(rig: Rig) -> None:
    rig.stream.follow(POINTS)
    rig.stream.bring(LAYERS[0])
    assert [rig.is_there(point) for point in LAYERS] == [True, False, False]
    rig.stream.drop(LAYERS[0])
    assert [rig.is_there(point) for point in LAYERS] == [False, False, False]


def test_nothing_is_read_before_an_order_is_known(rig: Rig) -> None:
    assert rig.reader.asked == []


def test_reading_goes_as_far_ahead_as_there_are_slots(tmp_path: Path) -> None:
    for num_slots in (1, 2, 3, 5):
        rig = Rig(tmp_path / str(num_slots), num_slots=num_slots)
        rig.stream.follow(POINTS)
        assert rig.reader.asked == [f"layer {index}" for index in range(min(num_slots, 3))]
        rig.stream.close()
        rig.reader.close()


def test_dropping_a_layer_begins_the_next_reading_and_bringing_one_does_not(rig: Rig) -> None:
    rig.stream.follow(POINTS)
    rig.stream.bring(LAYERS[0])
    assert rig.reader.asked == ["layer 0", "layer 1"]
    rig.stream.drop(LAYERS[0])
    assert rig.reader.asked == ["layer 0", "layer 1", "layer 2"]


def test_reading_ahead_goes_on_into_the_next_sweep(rig: Rig) -> None:
    rig.sweep()
    assert rig.reader.asked == [f"layer {index}" for index in (0, 1, 2, 0, 1)]
    rig.sweep()
    assert rig.reader.asked == [f"layer {index}" for index in (0, 1, 2, 0, 1, 2, 0, 1)]


@pytest.mark.parametrize("num_slots", [1, 2, 3, 4])
def test_every_layer_of_many_sweeps_is_whole(num_slots: int, tmp_path: Path) -> None:
    rig = Rig(tmp_path, num_slots=num_slots)
    for _ in range(5):
        rig.sweep()
    rig.stream.close()
    rig.reader.close()


def test_other_points_begin_another_order(rig: Rig) -> None:
    rig.sweep()
    rig.stream.follow(POINTS[:2])
    rig.stream.bring(LAYERS[0])
    assert rig.is_there(LAYERS[0])
    rig.stream.drop(LAYERS[0])
    rig.sweep()


def test_a_sweep_that_ends_early_leaves_the_next_one_whole(rig: Rig) -> None:
    for brought, dropped in [(1, 0), (2, 1), (2, 2), (3, 2)]:
        rig.stream.follow(POINTS)
        for index in range(brought):
            rig.stream.bring(LAYERS[index])
            if index < dropped:
                rig.stream.drop(LAYERS[index])
        rig.sweep()


@pytest.mark.parametrize("what", ["put", "take out"])
def test_an_interrupt_at_any_place_costs_no_slot(what: str, rig: Rig) -> None:
    for _ in range(3):
        rig.places.interrupts = what
        with pytest.raises(KeyboardInterrupt):
            rig.sweep()
    rig.sweep()
    assert rig.reader.asked[-5:] == ["layer 0", "layer 1", "layer 2", "layer 0", "layer 1"]


def test_a_reading_that_fails_is_told_where_it_is_needed_and_tried_again_by_the_next_sweep(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read, last = os.preadv, rig.file_of_the_last()

    def fail(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if os.path.samestat(os.fstat(descriptor), last.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    rig.stream.follow(POINTS)
    for point in LAYERS[:2]:
        rig.stream.bring(point)
        rig.stream.drop(point)
    for _ in range(2):
        with pytest.raises(CorruptCheckpointError, match=last.name):
            rig.stream.bring(LAYERS[2])
    assert not rig.is_there(LAYERS[2])
    monkeypatch.setattr(os, "preadv", real_read)
    rig.stream.bring(LAYERS[2])
    assert rig.is_there(LAYERS[2])
    rig.sweep()


def test_a_file_that_is_gone_is_found_before_anything_is_read(tmp_path: Path) -> None:
    rig = Rig(tmp_path, num_slots=2)
    rig.stream.close()
    rig.reader.close()
    rig.file_of_the_last().unlink()
    with DiskReader() as reader, pytest.raises(CheckpointNotFoundError, match=rig.file_of_the_last().name):
        WeightStream(rig.images, places=ParameterPlaces(rig.model, rig.weights), source=DiskImages(reader), num_slots=2)


def test_layers_that_are_kept_are_read_once_and_stay(rig: Rig) -> None:
    rig.sweep()
    all_bytes = rig.stream.bytes_per_sweep
    rig.stream.keep(LAYERS[1:2])
    assert rig.stream.bytes_per_sweep == all_bytes - rig.images[LAYERS[1]].read_bytes
    rig.reader.asked.clear()
    for _ in range(2):
        rig.sweep()
        assert rig.is_there(LAYERS[1])
    assert "layer 1" not in rig.reader.asked


def test_where_all_layers_are_kept_nothing_is_read_any_more(rig: Rig) -> None:
    rig.stream.keep(LAYERS)
    rig.reader.asked.clear()
    rig.sweep()
    assert rig.reader.asked == [] and rig.stream.bytes_per_sweep == 0


def test_parts_that_take_turns_in_one_place_are_put_there_each_time(rig: Rig) -> None:
    rig.stream.keep(LAYERS)
    for tensor in rig.images[LAYERS[0]].tensors:
        rig.places.put(tensor.name, torch.zeros(tensor.shape))  # as another part would
    assert not rig.is_there(LAYERS[0])
    rig.stream.bring(LAYERS[0])
    assert rig.is_there(LAYERS[0])


def test_closing_waits_for_what_is_on_its_way_and_leaves_neither_weights_nor_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    rig = Rig(tmp_path, num_slots=3)
    rig.stream.keep(LAYERS[:1])
    rig.stream.follow(POINTS)
    rig.stream.bring(LAYERS[1])
    buffers = [rig.stream._ahead[0].buffer, rig.stream._present[LAYERS[1]].buffer]
    rig.stream.close()
    assert all(transfer.is_complete for transfer in rig.reader.transfers)
    assert not rig.is_there(LAYERS[1]) and not rig.is_there(LAYERS[2])
    assert all(buffer._map.closed for buffer in buffers)
    rig.reader.close()
    assert threading.active_count() == before
