"""Everything is measured, in the shapes of the model where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headrace.compression.kv_codec import INT4, INT8, KVCodec
from headrace.errors import UnsupportedModelError
from headrace.planner import calibrate_machine as calibrating
from headrace.planner.attention_rates import AttentionShape, measure_attention
from headrace.planner.calibrate_machine import calibrate_machine
from headrace.planner.calibration_record import Calibration, DiskRead
from headrace.planner.disk import device_id
from headrace.planner.disk_bandwidth import DiskBandwidth
from headrace.planner.matrix_rates import NUM_TOKENS, measure_matrices
from headrace.planner.model_shapes import read_model_shapes
from headrace.units import MIB
from tests.tiny_configs import HIDDEN_SIZE, TINY_CONFIGS

CPU = torch.device("cpu")
DISK = DiskBandwidth(
    direct_reads=True,
    reads=(DiskRead(num_threads=2, block_bytes=8 * MIB, bytes_per_second=1e9),),
    write_bytes_per_second=1e9,
)


def configured(folder: Path, name: str) -> Path:
    (folder / "config.json").write_text(json.dumps(TINY_CONFIGS[name]))
    return folder


def test_a_model_s_own_shapes_are_measured_beside_the_standard_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "measure_disk", lambda *_, **__: DISK)
    found = calibrate_machine(configured(tmp_path, "llama"), device=CPU)
    shapes = {(rate.rows, rate.columns) for rate in found.matrix}
    assert shapes == {(2048, 2048), (96, HIDDEN_SIZE), (HIDDEN_SIZE, 96), (HIDDEN_SIZE, HIDDEN_SIZE)}
    assert {rate.dtype for rate in found.matrix} == {"float32", "bfloat16"}
    assert {(rate.kind, rate.dtype, rate.num_kv_heads) for rate in found.attention} == {
        (kind, dtype, 2) for kind in ("decode", "prefill") for dtype in ("float32", "bfloat16", "int8", "int4")
    }
    assert (found.disk_id, found.model) == (device_id(tmp_path), str(tmp_path))
    assert Calibration.from_json(found.to_json()) == found


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_shapes_of_every_family_are_found(name: str, tmp_path: Path) -> None:
    shapes = read_model_shapes(configured(tmp_path, name))
    assert shapes.matrices
    assert (shapes.attention is None) == (name == "mamba2")


def test_a_model_that_is_not_run_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "xlnet"}')
    monkeypatch.setattr(calibrating, "measure_disk", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(UnsupportedModelError, match="xlnet"):
        calibrate_machine(tmp_path, device=CPU)


def test_a_product_has_a_rate_for_every_number_of_tokens() -> None:
    rates = list(measure_matrices(CPU, torch.float32, [(300, 64)]))
    assert [rate.num_tokens for rate in rates] == list(NUM_TOKENS)
    assert all(1e6 < rate.operations_per_second < 1e15 for rate in rates)


@pytest.mark.parametrize("codec", [None, INT8, INT4], ids=["plain", "int8", "int4"])
def test_attention_of_latents_has_values_inside_its_keys(codec: KVCodec | None) -> None:
    shape = AttentionShape(num_heads=4, num_kv_heads=1, key_width=24, value_width=16, latent=True)
    decode, prefill = measure_attention(CPU, torch.float32, shape, codec=codec)
    assert (decode.kind, decode.tokens_per_row, prefill.kind, prefill.num_rows) == ("decode", 1, "prefill", 1)
    assert decode.kv_bytes_per_second > 0 and prefill.operations_per_second > 0
