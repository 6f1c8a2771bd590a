"""Tiny random-weight models of the supported families, made in memory without network.

`eos_token_id` is None everywhere, so greedy decoding never stops early. Weights are sharper than the default
initialisation: with a standard deviation of 0.02 greedy text repeats one token and compares nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests import tiny_architectures
from tests.tiny_architectures import DECODER, HIDDEN_SIZE, VOCAB

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

_KEEP_DEFAULT = ("A_log", "dt_", "correction")

# With tied embeddings the residual stream repeats the input token unless the blocks' outputs are louder than it.
_TIED_LOUD_MATRICES = ("o_proj.weight", "down_proj.weight", "dense.weight", "dense_4h_to_h.weight")
_TIED_LOUD_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")


def make_tiny_model(
    name: str, seed: int = 0, *, dtype: torch.dtype = torch.float32, attn: str | None = None
) -> PreTrainedModel:
    """Builds a model of `TINY_CONFIGS`, `MANY_EXPERTS` or `tiny_architectures.CONFIGS` in eval mode with weights that depend on `seed` alone."""
    values = dict((TINY_CONFIGS | MANY_EXPERTS | tiny_architectures.CONFIGS)[name])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(part in key for part in _KEEP_DEFAULT):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * (1.3 / parameter.shape[-1] ** 0.5))
            elif key.endswith("bias"):
                parameter.copy_(noise * 0.1)
            else:
                parameter.add_(noise * 0.1)
            if config.tie_word_embeddings and key.endswith(_TIED_LOUD_MATRICES):
                parameter.mul_(4)
            if config.tie_word_embeddings and "gemma" in name and key.endswith(_TIED_LOUD_NORMS):
                parameter.add_(4)
    return model.to(dtype).eval()


def save_tiny(
    name: str,
    directory: Path,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = "5GB",
) -> PreTrainedModel:
    """Saves the tiny model in hub format (one tensor per expert, config.json) and returns it. No tokenizer is saved."""
    model = make_tiny_model(name, seed, dtype=dtype)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return model


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Saves a tokenizer of as many words, `w0 w1 ...`, beside a model."""
    words = {f"w{index}": index for index in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
