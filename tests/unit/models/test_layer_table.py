"""The layer table says what each layer keeps, as the model's own cache would, and refuses what it does not know."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from headrace.errors import UnsupportedModelError
from headrace.models.layer_table import AttentionSpec, ExpertsSpec, LayerTable, LengthRule, StateSpec
from headrace.models.observation import layer_table
from headrace.schedule.steps import Point
from tests.parity.harness import tiny_reference
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model


def config_of(name: str, **changes: Any) -> PretrainedConfig:
    values = {**TINY_CONFIGS[name], **changes}
    return AutoConfig.for_model(values.pop("model_type"), **values)


def table_of(name: str, **changes: Any) -> LayerTable:
    return layer_table(config_of(name, **changes))


def groups_of(name: str, **changes: Any) -> list[tuple[str, tuple[int, ...], int | None]]:
    return [(group.kind, group.layers, group.window) for group in table_of(name, **changes).groups]


@pytest.mark.parametrize("name", sorted(TINY_CONFIGS))
def test_layers_keep_what_transformers_keeps(name: str) -> None:
    """The shapes in transformers' own cache after five tokens; MLA alone is kept otherwise, compressed."""
    table, model = table_of(name), tiny_reference(name)
    with torch.inference_mode():
        output = model(torch.tensor([[5, 6, 7, 8, 9]]), use_cache=True)
    cache = output.cache_params if name == "mamba2" else output.past_key_values
    assert table.max_positions == (None if name in ("bloom", "mamba2") else 128)
    assert len(table.layers) == len(cache.layers)
    for layer, kept in zip(table.layers, cache.layers, strict=True):
        if isinstance(layer.memory, StateSpec):
            assert layer.memory.conv_shape == _state_shape(kept.conv_states)
            assert layer.memory.recurrent_shape == _state_shape(kept.recurrent_states)
        elif layer.memory.latent:
            assert (layer.memory.num_kv_heads, layer.memory.key_width, layer.memory.value_width) == (1, 16 + 8, 16)
        else:
            num_heads, width = layer.memory.num_kv_heads, layer.memory.key_width
            assert kept.keys.shape[1::2] == (num_heads, width)
            assert kept.values.shape[1::2] == (num_heads, layer.memory.value_width)


def _state_shape(states: Any) -> tuple[int, ...]:
    return tuple((states[0] if isinstance(states, dict | list) else states).shape[1:])


def test_layers_of_one_shape_and_window_are_a_group() -> None:
    assert groups_of("llama") == [("full", (0, 1, 2), None)]
    assert groups_of("mistral") == [("sliding", (0, 1, 2), 5)]
    assert groups_of("mistral", sliding_window=None) == [("full", (0, 1, 2), None)]
    assert groups_of("gemma2") == [("sliding", (0, 2), 5), ("full", (1,), None)]
    assert groups_of("gemma3_text") == [("sliding", (0, 2), 5), ("full", (1,), None)]
    assert groups_of("qwen2") == [("full", (0,), None), ("sliding", (1, 2), 5)]
    assert groups_of("qwen2", use_sliding_window=False) == [("full", (0, 1, 2), None)]
    assert groups_of("qwen3_next") == [("state", (0, 2), None), ("full", (1,), None)]
    assert groups_of("mamba2") == [("state", (0, 1), None)]


def test_a_micro_batch_waits_for_weights_then_kv_then_experts() -> None:
    assert table_of("deepseek_v3", num_hidden_layers=2).points() == [
        Point("embedding"),
        Point("layer", 0),
        Point("attention", 0),
        Point("layer", 1),
        Point("attention", 1),
        Point("experts", 1),
        Point("head"),
    ]
    assert [point.kind for point in table_of("mamba2").points()] == ["embedding", "layer", "layer", "head"]
    assert Point("attention", 0) not in table_of("qwen3_next").points()


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2", "deepseek_v3", "qwen3_next"])
def test_a_layer_says_how_many_experts_it_has_and_how_many_a_token_uses(name: str) -> None:
    assert table_of(name).layers[-1].experts == ExpertsSpec(num_experts=4, num_per_token=2)
    assert table_of("llama").layers[-1].experts is None


def test_the_expected_share_of_experts_grows_from_one_tokens_to_all() -> None:
    spec = ExpertsSpec(num_experts=8, num_per_token=2)
    assert spec.expected_share(1) == 0.25
    assert spec.expected_share(2) == 0.25 + 0.75 * 0.25
    assert spec.expected_share(1000) == pytest.approx(1)


def test_kv_bytes_grow_with_tokens_up_to_the_window() -> None:
    per_layer_and_token = 2 * 2 * 16 * 2  # keys and values, heads, width, bytes of bf16
    assert table_of("llama").kv_bytes(100, 2) == 3 * 100 * per_layer_and_token
    assert table_of("mistral").kv_bytes(100, 2) == 3 * 5 * per_layer_and_token
    assert table_of("mistral").kv_bytes(3, 2) == 3 * 3 * per_layer_and_token
    assert table_of("deepseek_v2").kv_bytes(100, 2) == 3 * 100 * (16 + 8) * 2
    assert table_of("mamba2").kv_bytes(100, 2) == table_of("mamba2").kv_bytes(1, 2)


def test_a_block_holds_the_tokens_of_all_layers_of_its_group() -> None:
    table = table_of("gemma2")
    sliding, full = table.groups
    assert table.block_bytes(sliding, 32, 4) == 2 * table.block_bytes(full, 32, 4) == 2 * 32 * 2 * 2 * 16 * 4
    state, _ = table_of("qwen3_next").groups
    memory = table_of("qwen3_next").memory_of(state)
    assert isinstance(memory, StateSpec)
    # Channels of queries, keys and values by the kernel in bf16, and a state per value head in fp32.
    assert memory.num_bytes(2) == (2 * 2 * 8 + 4 * 8) * 4 * 2 + 4 * 8 * 8 * 4


def test_a_grouped_head_width_is_taken_from_the_configuration() -> None:
    (spec,) = {layer.memory for layer in table_of("qwen3", head_dim=24).layers}
    assert spec == AttentionSpec(num_kv_heads=2, key_width=24, value_width=24)


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="'xlnet' is refused: it generates without a cache"):
        layer_table(AutoConfig.for_model("xlnet"))


@pytest.mark.parametrize(
    ("name", "rule", "max_positions"),
    [
        ("llama", None, 128),
        ("llama_dynamic", LengthRule(threshold=32, each_length=True), 128),
        ("phi3_long", LengthRule(threshold=16, each_length=False, starts_again=True), 128),
    ],
)
def test_a_table_says_how_keys_depend_on_the_length_of_a_row(
    name: str, rule: LengthRule | None, max_positions: int
) -> None:
    table = layer_table(make_tiny_model(name).config)
    assert (table.length_rule, table.max_positions) == (rule, max_positions)


def test_rows_that_leave_the_same_keys_have_the_same_salt() -> None:
    alike, each = LengthRule(threshold=16, each_length=False), LengthRule(threshold=16, each_length=True)
    assert alike.salt(3) == alike.salt(16) != alike.salt(17) == alike.salt(40)
    assert each.salt(3) == each.salt(16) != each.salt(17) != each.salt(40)


def test_layers_that_keep_nothing_are_in_no_group() -> None:
    table = layer_table(make_tiny_model("nemotron_h").config)
    assert [layer.memory is None for layer in table.layers] == [False, True, False, True]
    assert sorted(layer for group in table.groups for layer in group.layers) == [0, 2]


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        table_of("llama").hidden_size = 3  # type: ignore[misc]
