"""Configurations of tiny models.

`eos_token_id` is None everywhere, so greedy decoding never stops early.
"""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 97
HIDDEN_SIZE = 64

VOCAB: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
DECODER: dict[str, Any] = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    **VOCAB,
}
_MULTI_HEAD = {**DECODER, "num_key_value_heads": 4}
_GPT = {"n_embd": HIDDEN_SIZE, "n_layer": 3, "n_head": 4, "n_positions": 128, **VOCAB}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SLIDING_FULL_SLIDING = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

_MLA: dict[str, Any] = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 128,
    **VOCAB,
}

TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **DECODER},
    "llama_tied": {"model_type": "llama", "tie_word_embeddings": True, **DECODER},
    "llama3_rope": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        **DECODER,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 5, **DECODER},
    "qwen2": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        **DECODER,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16, **DECODER},
    "opt": {
        "model_type": "opt",
        "hidden_size": HIDDEN_SIZE,
        "ffn_dim": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 32,
        **VOCAB,
    },
    "bloom": {"model_type": "bloom", "hidden_size": HIDDEN_SIZE, "n_layer": 3, "n_head": 4, **VOCAB},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        **DECODER,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        **DECODER,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **DECODER},
    "deepseek_v2": {"model_type": "deepseek_v2", "n_group": 1, "topk_group": 1, **_MLA},
    "deepseek_v3": {"model_type": "deepseek_v3", "n_group": 2, "topk_group": 1, **_MLA},
    "qwen3_next": {
        "model_type": "qwen3_next",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        **DECODER,
    },
    "mamba2": {
        "model_type": "mamba2",
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 16,
        "expand": 2,
        "n_groups": 1,
        "state_size": 8,
        "chunk_size": 8,
        **VOCAB,
    },
}

MANY_EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral_many": {**TINY_CONFIGS["mixtral"], "num_local_experts": 16},
    "deepseek_v3_many": {**TINY_CONFIGS["deepseek_v3"], "n_routed_experts": 16},
    "qwen3_next_many": {**TINY_CONFIGS["qwen3_next"], "num_experts": 16},
}
"""Mixtures of which a few tokens use a small part; two experts per token."""

FURTHER_CONFIGS: dict[str, dict[str, Any]] = {
    "codegen": {"model_type": "codegen", "rotary_dim": 8, **_GPT},
    "cohere": {"model_type": "cohere", **DECODER},
    "cohere2": {"model_type": "cohere2", **_SLIDING_FULL_SLIDING, **DECODER},
    "falcon": {
        "model_type": "falcon",
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        **DECODER,
    },
    "falcon_alibi": {
        "model_type": "falcon",
        "multi_query": False,
        "new_decoder_architecture": False,
        "parallel_attn": False,
        "bias": True,
        "alibi": True,
        **DECODER,
    },
    "falcon_new": {
        "model_type": "falcon",
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "bias": False,
        "alibi": False,
        **DECODER,
    },
    "gemma3n_text": {
        "model_type": "gemma3n_text",
        **DECODER,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "sliding_window": 5,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {
        "model_type": "gemma4_text",
        **DECODER,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "global_head_dim": 32,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_experts": {
        "model_type": "gemma4_text",
        **DECODER,
        "head_dim": 16,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "glm": {"model_type": "glm", "head_dim": 16, **DECODER},
    "glm4": {"model_type": "glm4", "head_dim": 16, **DECODER},
    "glm4_moe": {
        "model_type": "glm4_moe",
        "head_dim": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        **_EXPERTS,
        **DECODER,
    },
    "gpt2": {"model_type": "gpt2", **_GPT},
    "gpt_bigcode": {"model_type": "gpt_bigcode", **_GPT},
    "gpt_neo": {
        "model_type": "gpt_neo",
        "hidden_size": HIDDEN_SIZE,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 5,
        "max_position_embeddings": 128,
        **VOCAB,
    },
    "gpt_neox": {"model_type": "gpt_neox", **DECODER},
    "gpt_oss": {
        "model_type": "gpt_oss",
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        **_SLIDING_FULL_SLIDING,
        **DECODER,
    },
    "gptj": {"model_type": "gptj", "rotary_dim": 8, **_GPT},
    "granite": {
        "model_type": "granite",
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        **DECODER,
    },
    "jamba": {
        "model_type": "jamba",
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
        **DECODER,
    },
    "llama4_text": {
        "model_type": "llama4_text",
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
        "head_dim": 16,
        "attention_chunk_size": 6,
        "no_rope_layers": [1, 1, 0],
        "interleave_moe_layer_step": 2,
        **DECODER,
    },
    "mpt": {"model_type": "mpt", "d_model": HIDDEN_SIZE, "n_heads": 4, "n_layers": 3, "max_seq_len": 128, **VOCAB},
    "olmo2": {"model_type": "olmo2", **DECODER},
    "llama_dynamic": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        **DECODER,
        "max_position_embeddings": 32,
    },
    "phi": {"model_type": "phi", **_MULTI_HEAD},
    "phi3": {"model_type": "phi3", "sliding_window": 7, **DECODER},
    "phi3_long": {
        "model_type": "phi3",
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 16,
        },
        "original_max_position_embeddings": 16,
        **DECODER,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, **_EXPERTS, **DECODER},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0, 1], **DECODER},
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True, **DECODER},
    "starcoder2": {"model_type": "starcoder2", "sliding_window": 5, **DECODER},
}
"""Architectures beyond the families, one or more of each."""

FURTHER_CONFIGS["gemma4_unified_text"] = {**FURTHER_CONFIGS["gemma4_text"], "model_type": "gemma4_unified_text"}

CONFIGS = TINY_CONFIGS | MANY_EXPERTS | FURTHER_CONFIGS
