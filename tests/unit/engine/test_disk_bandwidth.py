"""`disk_bandwidth` holds for all that sweeps read of a streamed model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.engine import division
from headrace.engine.llm import LLM
from headrace.engine.options import EngineOptions
from headrace.engine.streaming import open_stream
from headrace.engine.tiers import open_tiers
from headrace.errors import OptionError
from headrace.executor.image_sources import DiskImages
from headrace.executor.weight_stream import WeightStream
from headrace.models.layer_image import LayerImage
from headrace.models.observation import layer_table
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_map import build_weight_map
from headrace.planner.calibration_store import save_calibration
from headrace.planner.disk import device_id
from headrace.planner.machine import identify_machine
from headrace.planner.placement import Rates
from headrace.storage.disk_reader import DiskReader, FileRange
from headrace.storage.throttle import Throttle
from tests.tiny_configs import HIDDEN_SIZE, TINY_CONFIGS
from tests.tiny_models import save_tiny, write_tokenizer
from tests.unit.planner.calibrations import made_up


class Clock:
    """Time that passes only while someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_layers_head_and_embedding_rows_all_pass_the_throttle(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    weights = build_weight_map(model, Checkpoint.open(tmp_path))
    clock = Clock()
    throttle = Throttle(1000, clock=clock.read, sleep=clock.sleep)
    tiers = open_tiers(EngineOptions(model="", device="cpu", memory_bytes=1 << 40, disk=str(tmp_path)), ExitStack())
    placed = open_stream(model, layer_table(model.config), weights, replace(tiers, throttle=throttle))
    try:
        assert placed.streams is not None
        layers = placed.streams.layers
        layers.follow(placed.points)
        for point in placed.points:
            layers.bring(point)
        assert clock.now >= layers.bytes_per_sweep / 1000
    finally:
        placed.close()
    before = clock.now
    model.get_input_embeddings().__dict__["real"](torch.tensor([[3, 9, 3]]))
    assert clock.now == pytest.approx(before + 2 * HIDDEN_SIZE * 4 / 1000)


def test_the_option_reaches_the_reader(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    write_tokenizer(tmp_path, TINY_CONFIGS["llama"]["vocab_size"])
    with LLM(tmp_path, dtype="float32", weights_on_device=0, disk_bandwidth="800GB/s") as llm:
        assert llm._engine is not None
        stream = llm._engine.executor.weights
        assert isinstance(stream, WeightStream) and isinstance(stream._source, DiskImages)
        throttle = stream._source._reader.throttle
        assert throttle is not None and throttle.bytes_per_second == 800e9
        assert llm.generate([[1, 2, 3]])[0].outputs[0].token_ids


@pytest.mark.parametrize("rate", ["quick", 0, -1.5])
def test_a_rate_that_cannot_be_is_refused_before_anything_is_loaded(rate: str | float, tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        LLM(tmp_path / "none", disk_bandwidth=rate)


def test_the_last_calibration_stands_for_measuring_anew_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(division, "measure_matrix_rate", lambda *_: 5.0)
    (tmp_path / "weights").write_bytes(bytes(100))
    part = FileRange(file=tmp_path / "weights", offset=0, num_bytes=100, target=0, direct=False)
    image = LayerImage(what="layer 0", num_bytes=100, ranges=(part,), tensors=())
    with DiskReader() as free, DiskReader(throttle=Throttle(1e6)) as limited:
        assert division.disk_rates(free, image, torch.float32).matrix == 5.0
        save_calibration(made_up(machine=identify_machine(), disk_id=device_id(tmp_path)))
        assert division.disk_rates(free, image, torch.float32) == Rates(below=1.5e9, matrix=90e9)
        assert division.disk_rates(limited, image, torch.float32) == Rates(below=1e6, matrix=90e9)
        assert division.disk_rates(free, image, torch.float16).matrix == 5.0
