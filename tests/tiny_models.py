"""Tiny random-weight models of the supported families, made in memory without network.

`eos_token_id` is None everywhere, so greedy decoding never stops early. Weights are sharper than the default
initialisation: with a standard deviation of 0.02 greedy text repeats one token and compares nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny_types import tiny_values

_KEEP_DEFAULT = ("A_log", "dt_", "correction")

# With tied embeddings the residual stream repeats the input token unless the blocks' outputs are louder than it.
_TIED_LOUD_MATRICES = ("o_proj.weight", "down_proj.weight", "dense.weight", "dense_4h_to_h.weight")
_TIED_LOUD_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")


def make_tiny_model(
    name: str, seed: int = 0, *, dtype: torch.dtype = torch.float32, attn: str | None = None, **sizes: int
) -> PreTrainedModel:
    """Builds a model of `tiny_values`, and `sizes`, in eval mode with weights that depend on `seed` alone."""
    values = {**tiny_values(name), **sizes}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn, dtype=torch.float32)
    is_tied = getattr(config, "tie_word_embeddings", False)
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
            if is_tied and key.endswith(_TIED_LOUD_MATRICES):
                parameter.mul_(4)
            if is_tied and "gemma" in name and key.endswith(_TIED_LOUD_NORMS):
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
