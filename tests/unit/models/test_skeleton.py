from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedModelError
from headrace.models import skeleton
from headrace.models.skeleton import automatic_dtype, build_skeleton, checkpoint_dtype
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model


def write_config(path: Path, **values: object) -> None:
    (path / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_parameters_are_on_meta_and_buffers_are_real(name: str, tmp_path: Path) -> None:
    reference = make_tiny_model(name)
    reference.config.save_pretrained(tmp_path)
    model = build_skeleton(tmp_path, torch.float32)
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[key], value) for key, value in reference.named_buffers())


def test_a_parameter_that_must_stay_in_float32_does(tmp_path: Path) -> None:
    make_tiny_model("deepseek_v3").config.save_pretrained(tmp_path)
    model = build_skeleton(tmp_path, torch.bfloat16)
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.dtype is torch.float32
    assert model.lm_head.weight.dtype is torch.bfloat16


def test_position_tables_are_computed_in_float32_as_in_transformers(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gptj", vocab_size=97, n_embd=64, n_layer=1, n_head=4, rotary_dim=8, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    buffers = dict(build_skeleton(tmp_path, torch.bfloat16).named_buffers())
    assert buffers
    assert all(torch.equal(buffers[key], value) for key, value in reference.named_buffers())


def test_an_unknown_model_type_names_both_versions(tmp_path: Path) -> None:
    write_config(tmp_path, model_type="llama9", transformers_version="9.1.0")
    with pytest.raises(UnsupportedModelError, match=r"'llama9' .*installed transformers 5\..*transformers 9\.1\.0"):
        build_skeleton(tmp_path, torch.float32)


def test_a_model_with_its_own_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    write_config(
        tmp_path, model_type="strange", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"}
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UnsupportedModelError, match="brings its own code"):
        build_skeleton(tmp_path, torch.float32)
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_known_model_type_is_not_run(tmp_path: Path) -> None:
    write_config(tmp_path, auto_map={"AutoModelForCausalLM": "evil.M", "AutoConfig": "evil.C"}, **TINY_CONFIGS["llama"])
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert type(build_skeleton(tmp_path, torch.float32)).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_a_model_that_generates_no_text_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, model_type="vit")
    with pytest.raises(UnsupportedModelError, match="'vit' is not a causal language model"):
        build_skeleton(tmp_path, torch.float32)


def test_a_config_without_a_model_type_is_explained(tmp_path: Path) -> None:
    write_config(tmp_path, dim=64)
    with pytest.raises(UnsupportedModelError, match="no model_type"):
        build_skeleton(tmp_path, torch.float32)


def test_a_config_that_transformers_refuses_is_corrupt(tmp_path: Path) -> None:
    write_config(tmp_path, **{**TINY_CONFIGS["llama"], "hidden_size": "big"})
    with pytest.raises(CorruptCheckpointError, match=r"config\.json: transformers .* refuses it"):
        build_skeleton(tmp_path, torch.float32)


def test_a_missing_config_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json"):
        build_skeleton(tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"torch_dtype": "torch.float32"}, torch.float32),
        ({}, torch.float16),
        ({"dtype": "int8"}, torch.float16),
    ],
)
def test_the_dtype_of_a_checkpoint_is_the_configs_or_that_of_most_bytes(
    tmp_path: Path, config: dict[str, str], expected: torch.dtype
) -> None:
    write_config(tmp_path, **config)
    save_file(
        {"a": torch.ones(9, dtype=torch.float16), "b": torch.ones(3), "c": torch.ones(99, dtype=torch.int64)},
        tmp_path / "model.safetensors",
    )
    assert checkpoint_dtype(Checkpoint.open(tmp_path)) is expected


@pytest.mark.parametrize(
    ("found", "limit_bytes", "expected"),
    [(object(), 10**9, torch.bfloat16), (None, 10**9, torch.float32), (None, 100, torch.bfloat16)],
    ids=["with the library", "without it", "without memory for it"],
)
def test_weights_are_widened_where_torch_multiplies_them_slowly_and_memory_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: object, limit_bytes: int, expected: torch.dtype
) -> None:
    monkeypatch.setattr(skeleton, "is_slow", lambda dtype, device: True)
    monkeypatch.setattr(skeleton, "library", lambda: found)
    write_config(tmp_path, dtype="bfloat16")
    save_file({"a": torch.ones(99, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert automatic_dtype(Checkpoint.open(tmp_path), torch.device("cpu"), limit_bytes) is expected
