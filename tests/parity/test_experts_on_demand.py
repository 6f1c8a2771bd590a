"""Experts that are read as tokens are routed to them, or in order: the tokens are those of `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace.engine import streaming
from headrace.executor import expert_stream
from headrace.executor.expert_stream import ExpertStream
from headrace.executor.image_sources import DiskImages, Expert, ImageKey
from headrace.models.brought_experts import ExpertTensors
from headrace.models.layer_image import LayerImage
from headrace.schedule.steps import Point, serial_steps
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.link import Buffer
from headrace.storage.transfer import Transfer
from tests.parity.harness import Row, Shape, distinct_rows, executor_of, make_prompt, sharing_rows
from tests.parity.test_streaming import assert_same_tokens, opened, rig_of, streamed
from tests.tiny_configs import MANY_EXPERTS
from tests.tiny_models import save_tiny

FAMILIES = ["mixtral", "deepseek_v2", "deepseek_v3", "qwen3_next", *MANY_EXPERTS]
READING = {"always on demand": 1.0, "always in order": 0.0, "as the sweep needs": None}
SHAPES = {
    "one micro-batch": Shape(),
    "many micro-batches": Shape(num_micro_batches=3, sweep_tokens=23, block_tokens=4),
    "serial": Shape(num_micro_batches=2, sweep_tokens=64, schedule=serial_steps),
}
ROWS = {
    "one row": lambda: [Row(prompt=make_prompt(7), num_new=12)],
    "distinct": lambda: distinct_rows(every=2),
    "sharing": lambda: sharing_rows(every=1),
}


class NotedImages(DiskImages):
    """A disk that notes what is begun; what has not arrived yet is NaN."""

    begun: list[tuple[ImageKey, int]]

    def begin(self, key: ImageKey, image: LayerImage, slot: Buffer) -> Transfer:
        assert isinstance(slot, AlignedBuffer)
        slot.bytes[:] = b"\xff" * slot.num_bytes  # NaN
        self.begun.append((key, image.read_bytes))
        return super().begin(key, image, slot)


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ImageKey, int]]:
    """What was read, in order. There are places for the experts of two layers of three."""
    noted: list[tuple[ImageKey, int]] = []
    monkeypatch.setattr(NotedImages, "begun", noted, raising=False)
    monkeypatch.setattr(streaming, "DiskImages", NotedImages)
    monkeypatch.setattr(streaming, "_MOST_SLOTS", 2)
    return noted


def read(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    share = READING[how]
    if share is not None:
        monkeypatch.setattr(expert_stream, "MOST_ON_DEMAND", share)


@pytest.mark.parametrize("how", READING)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_row_gets_the_tokens_of_generate(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(how, monkeypatch)
    with streamed(name, tmp_path, "nothing") as placed:
        assert placed.streams is not None and placed.streams.experts is not None
        assert_same_tokens(name, rig_of(placed, Shape()), ROWS["one row"]())


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["nothing", "every other part"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", READING)
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_do_not_depend_on_how_experts_are_read(
    name: str, how: str, shape: str, rows: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(how, monkeypatch)
    with streamed(name, tmp_path, kept) as placed:
        assert_same_tokens(name, rig_of(placed, SHAPES[shape]), ROWS[rows]())


class NotedExperts:
    """Experts of a stream, with a note of who was routed to in which layer."""

    def __init__(self, stream: ExpertStream) -> None:
        self.stream = stream
        self.routed: list[Expert] = []

    def follow(self, points: Sequence[Point], num_tokens: int) -> None:
        self.stream.follow(points, num_tokens)

    def bring(self, layer: int, routing: Tensor) -> ExpertTensors | None:
        self.routed += [Expert(layer, index) for index in torch.unique(routing).tolist()]
        return self.stream.bring(layer, routing)

    def drop(self, layer: int) -> None:
        self.stream.drop(layer)


@pytest.mark.parametrize("name", MANY_EXPERTS)
def test_a_sweep_of_one_token_reads_the_experts_that_it_is_routed_to_and_no_other(
    name: str, tmp_path: Path, begun: list[tuple[ImageKey, int]]
) -> None:
    save_tiny(name, tmp_path / "model")
    with opened(tmp_path, "nothing") as placed:
        streams = placed.streams
        assert streams is not None and streams.experts is not None
        noted = NotedExperts(streams.experts)
        rig = rig_of(placed, Shape())
        rig.executor = replace(executor_of(rig), experts=noted)
        assert_same_tokens(name, rig, [Row(prompt=make_prompt(1), num_new=10)])
        placed.close()
        experts = [part for part, _ in begun if isinstance(part, Expert)]
        assert set(experts) == set(noted.routed)
        assert len(experts) <= len(noted.routed) == 10 * 2 * len(streams.parts.experts)
        assert streams.reader.num_bytes == sum(num_bytes for _, num_bytes in begun)
        assert len(set(experts)) < 16 * len(streams.parts.experts), "this test needs experts that nobody is routed to"


def test_a_large_sweep_reads_all_experts_in_order_and_each_once(
    tmp_path: Path, begun: list[tuple[ImageKey, int]]
) -> None:
    num_sweeps = 0

    def count(_: object) -> None:
        nonlocal num_sweeps
        num_sweeps += 1

    with streamed("mixtral_many", tmp_path, "nothing") as placed:
        rig = rig_of(placed, Shape(num_micro_batches=3))
        rig.run([Row(prompt=make_prompt(14, seed), num_new=4) for seed in range(24)], watch=count)
    experts = [part for part, _ in begun if isinstance(part, Expert)]
    order = [Expert(layer, index) for layer in range(3) for index in range(16)]
    assert num_sweeps == 4
    assert experts == [order[number % 48] for number in range(len(experts))]
    assert num_sweeps * 48 <= len(experts) <= (num_sweeps + 1) * 48
