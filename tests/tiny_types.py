"""A tiny configuration of every causal language model that transformers has, from what the type itself calls its sizes.

`TYPES` holds what is particular to a type; where it has an entry in `tests.tiny_configs`, that is used instead.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny_configs import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE

ALL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

_NAMES_OF_SIZES: dict[Any, tuple[str, ...]] = {
    VOCAB_SIZE: ("vocab_size", "vocab_size_per_layer_input"),
    HIDDEN_SIZE: ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width", "embed_dim"),
    96: (
        "intermediate_size",
        "ffn_dim",
        "decoder_ffn_dim",
        "ffn_hidden_size",
        "dense_intermediate_size",
        "intermediate_size_mlp",
        "mlp_intermediate_size",
    ),
    32: (
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "expert_ffn_hidden_size",
        "expert_intermediate_size",
    ),
    3: ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    4: (
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
    2: (
        "num_key_value_heads",
        "num_experts_per_tok",
        "moe_topk",
        "moe_k",
        "linear_num_key_heads",
        "index_n_heads",
    ),
    1: (
        "n_shared_experts",
        "num_shared_experts",
        "moe_num_shared_experts",
        "first_k_dense_replace",
        "n_group",
        "topk_group",
        "mamba_n_groups",
        "bos_token_id",
    ),
    128: ("max_position_embeddings", "n_positions", "n_ctx", "index_topk"),
    16: (
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
    24: ("q_lora_rank",),
    8: (
        "qk_rope_head_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "mamba_n_heads",
        "state_size",
        "rotary_dim",
        "hidden_size_per_layer_input",
    ),
    5: ("sliding_window", "attention_window_size"),
    6: ("attention_chunk_size",),
    0: ("pad_token_id", "attention_dropout", "dropout", "hidden_dropout"),
    None: ("eos_token_id",),
    True: ("is_decoder",),
    False: ("use_mambapy", "block_auto_adjust_ff_dim"),
}
_SIZES = {name: size for size, names in _NAMES_OF_SIZES.items() for name in names}
_STAYS_ABSENT = ("sliding_window", "attention_chunk_size", "q_lora_rank", "head_dim")

_LINEAR_FULL_LINEAR = ["linear_attention", "full_attention", "linear_attention"]
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_chunk_size": 8}

TYPES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "layer_types": ..., **_MAMBA},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "dbrx": {
        "d_model": HIDDEN_SIZE,
        "max_seq_len": 128,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
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


def tiny_values(model_type: str) -> dict[str, Any]:
    """Returns the arguments of a tiny configuration of `model_type`, its name among them."""
    if model_type in CONFIGS:
        return CONFIGS[model_type]
    values = _small(AutoConfig.for_model(model_type)) | TYPES.get(model_type, {})
    return {"model_type": model_type, **{name: value for name, value in values.items() if value is not ...}}


def _small(config: PretrainedConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PretrainedConfig):
            values[name] = _small(inner)
    for name, size in _SIZES.items():
        if hasattr(config, name):
            default = getattr(config, name)
            if not isinstance(default, list | tuple) and not (default is None and name in _STAYS_ABSENT):
                values[name] = size
    if "kv_lora_rank" in values:
        values.pop("head_dim", None)
        values["num_key_value_heads"] = values["num_attention_heads"]
    if values.get("num_hidden_layers") == 3:
        for name in ("layer_types", "mlp_layer_types"):
            kinds = list(getattr(config, name, None) or ())
            if kinds:
                values[name] = [*kinds[:2], next((kind for kind in kinds if kind not in kinds[:2]), kinds[-1])][:3]
    return values
