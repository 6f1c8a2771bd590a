from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.gather import Gather
from headrace.errors import WeightMismatchError
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_conversion import Conversion
from headrace.models.weight_map import WeightMap, build_weight_map
from headrace.models.weights import WeightLoader
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model, save_tiny

State = dict[str, torch.Tensor]


def map_weights(path: Path) -> tuple[PreTrainedModel, WeightMap]:
    model = build_skeleton(path, torch.float32)
    return model, build_weight_map(model, Checkpoint.open(path))


def save_changed(name: str, path: Path, change: Callable[[State], object]) -> None:
    """Saves a tiny model after `change` has altered its tensors."""
    save_tiny(name, path)
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors")


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_groups_hold_every_tensor_once(name: str, tmp_path: Path) -> None:
    reference = save_tiny(name, tmp_path)
    model, weight_map = map_weights(tmp_path)
    grouped = [source.name for group in weight_map.groups for source in weight_map.in_group(group)]
    assert sorted(grouped) == sorted(weight_map.parameters)
    assert set(grouped) | set(weight_map.tied) == set(reference.state_dict())
    assert weight_map.num_layers == model.config.num_hidden_layers
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in reference.state_dict().values()}
    assert weight_map.num_bytes == sum(unique.values())
    assert all(weight_map.group_bytes(layer) > 0 for layer in range(weight_map.num_layers))
    assert weight_map.group_bytes("embedding") == reference.get_input_embeddings().weight.nbytes
    assert (weight_map.group_bytes("head") == 0) == bool(weight_map.tied)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2", "deepseek_v3", "qwen3_next"])
def test_merged_experts_are_gathered_from_the_files_without_conversion(name: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path)
    _, weight_map = map_weights(tmp_path)
    merged = [source for source in weight_map.parameters.values() if source.name.endswith("experts.gate_up_proj")]
    assert merged
    for source in merged:
        assert isinstance(source.content, Gather)
        num_experts, width, hidden = source.shape
        runs = list(source.content.runs())
        assert len(runs) == 2 * num_experts
        assert {run.num_elements for run in runs} == {width // 2 * hidden}


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    def change(state: State) -> None:
        del state["model.layers.0.mlp.up_proj.weight"]
        state["model.norm.weight"] = torch.ones(63)
        state["value_head.weight"] = torch.ones(2)
        state["model.layers.1.input_layernorm.weight"] = torch.ones(64, dtype=torch.int64)

    save_changed("llama", tmp_path, change)
    with pytest.raises(WeightMismatchError) as raised:
        map_weights(tmp_path)
    message = str(raised.value)
    assert str(tmp_path) in message
    assert "1 missing: model.layers.0.mlp.up_proj.weight;" in message
    assert "model.safetensors: model.norm.weight: shape [63] in the checkpoint, [64] in the model" in message
    assert "model.safetensors: model.layers.1.input_layernorm.weight: dtype int64 cannot become float32" in message
    assert "1 unexpected: model.safetensors: value_head.weight" in message
    assert "use the config.json of these weights" in message


@pytest.mark.parametrize("expert", [0, 2, 3])
def test_a_missing_expert_is_named(expert: int, tmp_path: Path) -> None:
    key = f"model.layers.1.block_sparse_moe.experts.{expert}.w3.weight"

    save_changed("mixtral", tmp_path, lambda state: state.pop(key))
    with pytest.raises(WeightMismatchError, match=rf": 1 missing: {re.escape(key)}; the checkpoint is incomplete"):
        map_weights(tmp_path)


def test_an_expert_of_another_shape_is_a_fault(tmp_path: Path) -> None:
    def change(state: State) -> None:
        name = next(name for name in state if "experts.1.w2" in name)
        state[name] = torch.ones(3, 3)

    save_changed("mixtral", tmp_path, change)
    with pytest.raises(WeightMismatchError, match="cannot stack shapes"):
        map_weights(tmp_path)


def test_long_lists_of_faults_are_shortened(tmp_path: Path) -> None:
    save_changed("llama", tmp_path, lambda state: [state.pop(name) for name in list(state) if "layers.1" in name])
    with pytest.raises(WeightMismatchError, match=r"9 missing: .* and 1 more; the checkpoint is incomplete"):
        map_weights(tmp_path)


def test_a_model_with_more_layers_than_its_config_says_is_refused(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(WeightMismatchError, match=r"9 unexpected: .*model\.layers\.2\..*smaller or another model"):
        map_weights(tmp_path)


def test_two_tensors_for_one_parameter_are_a_fault(tmp_path: Path) -> None:
    save_changed("llama", tmp_path, lambda state: state.update({"norm.weight": torch.ones(64)}))
    with pytest.raises(WeightMismatchError, match="several tensors"):
        map_weights(tmp_path)


def test_tensors_known_to_be_needless_are_ignored(tmp_path: Path) -> None:
    needless = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_changed("llama", tmp_path, lambda state: state.update(needless))
    _, weight_map = map_weights(tmp_path)
    assert weight_map.ignored == tuple(needless)


def test_what_the_architecture_ignores_is_ignored(tmp_path: Path) -> None:
    save_changed("qwen3_next", tmp_path, lambda state: state.update({"mtp.norm.weight": torch.ones(4)}))
    assert map_weights(tmp_path)[1].ignored == ("mtp.norm.weight",)


def test_a_tied_head_that_is_stored_twice_is_loaded_once(tmp_path: Path) -> None:
    def change(state: State) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()

    save_changed("llama_tied", tmp_path, change)
    _, weight_map = map_weights(tmp_path)
    assert weight_map.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in weight_map.parameters


def test_a_tied_head_with_values_of_its_own_is_untied_as_in_transformers(tmp_path: Path) -> None:
    def change(state: State) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1

    save_changed("llama_tied", tmp_path, change)
    model, weight_map = map_weights(tmp_path)
    with WeightLoader(model, weight_map) as loader:
        loader.load_all()
    assert weight_map.tied == {}
    assert weight_map.group_bytes("head") > 0
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model.lm_head.weight, reference.lm_head.weight)
    assert torch.equal(model.model.embed_tokens.weight, reference.model.embed_tokens.weight)


def test_a_tied_embedding_stored_under_the_heads_name_is_found(tmp_path: Path) -> None:
    def change(state: State) -> None:
        state["lm_head.weight"] = state.pop("model.embed_tokens.weight")

    save_changed("llama_tied", tmp_path, change)
    model, weight_map = map_weights(tmp_path)
    with WeightLoader(model, weight_map) as loader:
        loader.load_all()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, make_tiny_model("llama_tied").lm_head.weight)


def test_a_tied_weight_missing_under_both_names_is_named_once(tmp_path: Path) -> None:
    save_changed("llama_tied", tmp_path, lambda state: state.pop("model.embed_tokens.weight"))
    with pytest.raises(WeightMismatchError, match=r"1 missing: model\.embed_tokens\.weight;"):
        map_weights(tmp_path)


def test_an_untied_head_that_is_missing_is_a_fault(tmp_path: Path) -> None:
    save_changed("llama", tmp_path, lambda state: state.pop("lm_head.weight"))
    with pytest.raises(WeightMismatchError, match=r"1 missing: lm_head\.weight;"):
        map_weights(tmp_path)


def test_other_conversions_are_left_to_transformers(tmp_path: Path) -> None:
    """HRM stores gate and up projections, and the four attention projections, as one tensor each."""
    config = AutoConfig.for_model(
        "hrm_text", vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    reference.save_pretrained(tmp_path)
    model, weight_map = map_weights(tmp_path)
    assert any(isinstance(source.content, Conversion) for source in weight_map.parameters.values())
    with WeightLoader(model, weight_map) as loader:
        loader.load_all()
    for key, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
