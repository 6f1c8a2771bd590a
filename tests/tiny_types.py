"""A tiny configuration of every causal language model that transformers has, from what the type itself calls its sizes.

`TYPES` holds what is particular to a type; where it has an entry in `tests.tiny_configs`, that is used instead.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny_configs import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE

ALL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB_SIZE),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width", "embed_dim"), HIDDEN_SIZE),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "decoder_ffn_dim",
            "ffn_hidden_size",
            "dense_intermediate_size",
            "intermediate_size_mlp",
            "mlp_intermediate_size",
        ),
        96,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
            "expert_intermediate_size",
        ),
        32,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 3),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "decoder_attention_heads",
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
            "linear_num_value_heads",
            "mamba_d_state",
        ),
        4,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "num_experts_per_tok", "moe_topk", "moe_k", "linear_num_key_heads", "index_n_heads"), 2
    ),
    **dict.fromkeys(
        (
            "n_shared_experts",
            "num_shared_experts",
            "moe_num_shared_experts",
            "first_k_dense_replace",
            "n_group",
            "topk_group",
            "mamba_n_groups",
            "bos_token_id",
        ),
        1,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "index_topk"), 128),
    **dict.fromkeys(
        (
            "head_dim",
            "kv_channels",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "v_head_dim",
            "global_head_dim",
            "mamba_d_head",
            "index_head_dim",
            "attention_head_dim",
        ),
        16,
    ),
    **dict.fromkeys(("q_lora_rank",), 24),
    **dict.fromkeys(
        (
            "qk_rope_head_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "mamba_n_heads",
            "state_size",
            "rotary_dim",
            "hidden_size_per_layer_input",
        ),
        8,
    ),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 5),
    **dict.fromkeys(("attention_chunk_size",), 6),
    "pad_token_id": 0,
    **dict.fromkeys(("attention_dropout", "dropout", "hidden_dropout"), 0.0),
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), None),
    **dict.fromkeys(("is_decoder",), True),
    **dict.fromkeys(("use_mambapy", "block_auto_adjust_ff_dim"), False),
}
_STAYS_ABSENT = ("sliding_window", "attention_chunk_size", "q_lora_rank", "head_dim")

_LINEAR_FULL_LINEAR = ["linear_attention", "full_attention", "linear_attention"]
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_chunk_size": 8}

TYPES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "layer_types": ..., **_MAMBA},
    "dbrx": {
        "d_model": HIDDEN_SIZE,
        "max_seq_len": 128,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 2.0},
        "ffn_config": {"hidden_size": HIDDEN_SIZE, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {"mamba_d_ssm": 128, "layer_types": ..., **_MAMBA},
    "granitemoehybrid": {"layer_types": _LINEAR_FULL_LINEAR, "position_embedding_type": "rope", **_MAMBA},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "moe_topk": 2, "num_experts": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 8, "num_layers": 2, "zero_expert_num": 2, "num_hidden_layers": ...},
    "ministral": {"head_dim": 16, "sliding_window": 5},
    "nemotron_h": {
        "layer_types": ["linear_attention", "mlp", "full_attention", "moe"],
        "num_hidden_layers": ...,
        "head_dim": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
    },
    "zamba2": {
        "layer_types": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "chunk_size": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What else a type needs; a value of `...` leaves a name to the type's default."""


def tiny_values(name: str) -> dict[str, Any]:
    """Returns the arguments of a tiny configuration, `model_type` among them: one of `CONFIGS`, or that of a type."""
    if name in CONFIGS:
        return CONFIGS[name]
    values = _small(AutoConfig.for_model(name)) | TYPES.get(name, {})
    return {"model_type": name, **{key: value for key, value in values.items() if value is not ...}}


def _small(config: PretrainedConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PretrainedConfig):
            values[name] = _small(inner)
    for name, size in _SIZES.items():
        if _can_be_set(config, name):
            default = getattr(config, name)
            if not isinstance(default, list | tuple) and not (default is None and name in _STAYS_ABSENT):
                values[name] = size
    if "kv_lora_rank" in values:
        values.pop("head_dim", None)
        values["num_key_value_heads"] = values["num_attention_heads"]
    if values.get("num_hidden_layers") == 3:
        for name in ("layer_types", "mlp_layer_types"):
            kinds = list(getattr(config, name, None) or ())
            if kinds and _can_be_set(config, name):
                values[name] = [*kinds[:2], next((kind for kind in kinds if kind not in kinds[:2]), kinds[-1])][:3]
    return values


def _can_be_set(config: PretrainedConfig, name: str) -> bool:
    return hasattr(config, name) and not isinstance(inspect.getattr_static(type(config), name, None), property)
