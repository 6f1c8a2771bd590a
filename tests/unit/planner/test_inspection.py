"""What a model is and would cost, of tiny models counted by hand; `test_real_configs` has the well-known ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headrace.compression.kv_codec import INT4, INT8, KVCodec
from headrace.errors import CheckpointNotFoundError, UnsupportedModelError
from headrace.planner import inspection
from headrace.planner.hardware import Hardware
from headrace.planner.inspection import ModelReport, inspect_model
from tests.tiny_configs import HIDDEN_SIZE, TINY_CONFIGS, VOCAB_SIZE
from tests.tiny_models import make_tiny_model, save_tiny

CPU = torch.device("cpu")
RATES = Hardware(device="cpu", matrix_rate=1e12, memory_rate=1e10, memory_bytes=8 << 30)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "calibrate", lambda *_: RATES)


def report_of(folder: Path, dtype: torch.dtype | None = None) -> ModelReport:
    return inspect_model("m", folder, dtype=dtype, device=CPU)


def configured(folder: Path, name: str) -> Path:
    (folder / "config.json").write_text(json.dumps(TINY_CONFIGS[name]))
    return folder


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_parameters_are_counted_as_torch_counts_them(name: str, tmp_path: Path) -> None:
    model = make_tiny_model(name)
    report = report_of(configured(tmp_path, name))
    stored = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}  # tied ones once
    assert report.num_parameters == sum(stored.values())
    assert report.weight_bytes == 4 * report.num_parameters
    assert report.num_layers == model.config.num_hidden_layers
    assert sum(layer.count for layer in report.layers) == report.num_layers
    layer_bytes = sum(layer.count * layer.num_bytes for layer in report.layers)
    assert layer_bytes + report.embedding_bytes + report.head_bytes <= report.weight_bytes
    assert report.unsupported is None


@pytest.mark.parametrize(
    ("name", "kv_bytes", "state_bytes"),
    [
        ("llama", 3 * 2 * 2 * 16 * 4, 0),
        ("gemma2", 3 * 2 * 2 * 16 * 4, 0),
        ("bloom", 3 * 2 * 4 * 16 * 4, 0),
        ("deepseek_v3", 3 * (16 + 8) * 4, 0),
        ("qwen3_next", 1 * 2 * 2 * 16 * 4, 2 * 4 * ((2 * 2 * 8 + 4 * 8) * 4 + 4 * 8 * 8)),
        ("mamba2", 0, 2 * 4 * ((128 + 2 * 8) * 4 + 8 * 16 * 8)),
    ],
)
def test_kv_and_state_are_those_of_the_configuration(
    name: str, kv_bytes: int, state_bytes: int, tmp_path: Path
) -> None:
    report = report_of(configured(tmp_path, name))
    assert (report.kv_bytes_per_token, report.state_bytes_per_row) == (kv_bytes, state_bytes)


def test_a_dtype_changes_bytes_and_not_counts(tmp_path: Path) -> None:
    configured(tmp_path, "llama")
    wide, narrow = report_of(tmp_path), report_of(tmp_path, torch.bfloat16)
    assert narrow.num_parameters == wide.num_parameters
    assert (narrow.dtype, 2 * narrow.weight_bytes) == ("bfloat16", wide.weight_bytes)
    assert wide.kv_bytes_per_token == 2 * (narrow.kv_bytes_per_token or 0)


@pytest.mark.parametrize(
    ("name", "codec", "kv_bytes"),
    [
        ("llama", INT8, 3 * 2 * 2 * (16 + 4)),
        ("llama", INT4, 3 * 2 * 2 * (8 + 4)),
        ("deepseek_v3", INT8, 3 * (16 + 4 + 8 + 4)),
    ],
)
def test_kv_in_codes_takes_their_bytes_whatever_the_dtype(
    name: str, codec: KVCodec, kv_bytes: int, tmp_path: Path
) -> None:
    configured(tmp_path, name)
    for dtype in (torch.float32, torch.bfloat16):
        report = inspect_model("m", tmp_path, dtype=dtype, device=CPU, codec=codec)
        assert (report.kv_cache_dtype, report.kv_bytes_per_token) == (codec.name, kv_bytes)


def test_of_experts_only_the_chosen_ones_are_active(tmp_path: Path) -> None:
    report = report_of(configured(tmp_path, "mixtral"))
    expert = 3 * HIDDEN_SIZE * 96
    assert report.num_parameters - report.num_active_parameters == 3 * 2 * expert


def test_a_tied_head_is_shared_and_is_multiplied(tmp_path: Path) -> None:
    tied = report_of(configured(tmp_path, "llama_tied"))
    assert tied.head_bytes == 0 and tied.embedding_bytes == VOCAB_SIZE * HIDDEN_SIZE * 4
    free = report_of(configured(tmp_path, "llama"))
    assert free.head_bytes == free.embedding_bytes
    assert free.prefill_seconds == tied.prefill_seconds
    assert free.decode_seconds == tied.decode_seconds


def test_ideal_times_are_operations_and_bytes_at_the_measured_rates(tmp_path: Path) -> None:
    report = report_of(configured(tmp_path, "llama"))
    multiplied = report.num_parameters - VOCAB_SIZE * HIDDEN_SIZE
    assert report.prefill_seconds == pytest.approx(2 * 512 * multiplied / 1e12)
    assert report.decode_seconds == pytest.approx(4 * multiplied / 1e10)


def test_weights_are_found_and_none_is_read(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    report = report_of(tmp_path)
    assert (report.weights, report.has_tokenizer, report.has_chat_template) == ("safetensors", False, False)


def test_a_tokenizer_and_its_template_are_seen(shared_data: Path, tmp_path: Path) -> None:
    stories = report_of(shared_data / "models" / "stories260k-hf")
    assert (stories.weights, stories.has_tokenizer, stories.has_chat_template) == ("safetensors", True, False)
    assert stories.context_tokens == 512


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        report_of(tmp_path)


def test_an_unknown_architecture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama9"}')
    with pytest.raises(UnsupportedModelError, match="llama9"):
        report_of(tmp_path)
