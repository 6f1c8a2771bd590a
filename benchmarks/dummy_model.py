"""Llama-shaped checkpoints of random weights, written a layer at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks.llama_shape import LlamaShape
from benchmarks.weight_files import drop_from_cache, weight_files

_INDEX = "model.safetensors.index.json"
_SPREAD = 0.02
"""Standard deviation of all matrices: what Llama's own initialisation uses."""


def make_model(folder: Path, shape: LlamaShape, dtype: str) -> int:
    """Writes a model with its tokenizer to `folder`, unless just this one is there, and returns its weights' bytes.

    Takes the memory of one layer. Every file is on the disk when this returns, and none of it in the file cache.
    """
    wanted = {"shape": asdict(shape), "dtype": dtype}
    made = folder / "made.json"
    if not made.exists() or json.loads(made.read_text()) != wanted:
        made.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, shape, dtype)
        made.write_text(json.dumps(wanted))  # last, so that a folder that was left half way is made again
    for file in weight_files(folder):
        drop_from_cache(file)
    return int(json.loads((folder / _INDEX).read_text())["metadata"]["total_size"])


def _write(folder: Path, shape: LlamaShape, dtype: str) -> None:
    for old in weight_files(folder):
        old.unlink()
    LlamaConfig(**asdict(shape), eos_token_id=None, architectures=["LlamaForCausalLM"], dtype=dtype).save_pretrained(
        folder
    )
    words = {f"w{index}": index for index in range(shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    total_bytes = 0
    for number, tensors in enumerate(_shards(shape, getattr(torch, dtype), generator)):
        file = folder / f"model-{number:05}.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        drop_from_cache(file)
        places.update(dict.fromkeys(tensors, file.name))
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": places}))


def _shards(shape: LlamaShape, dtype: torch.dtype, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    def random(outputs: int, inputs: int) -> Tensor:
        return torch.empty(outputs, inputs, dtype=dtype).normal_(std=_SPREAD, generator=generator)

    def ones() -> Tensor:
        return torch.ones(shape.hidden_size, dtype=dtype)

    yield {"model.embed_tokens.weight": random(shape.vocab_size, shape.hidden_size)}
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        norms = {prefix + f"{name}_layernorm.weight": ones() for name in ("input", "post_attention")}
        yield norms | {prefix + name + ".weight": random(*size) for name, size in shape.layer_matrices().items()}
    yield {"model.norm.weight": ones()}
    if not shape.tie_word_embeddings:
        yield {"lm_head.weight": random(shape.vocab_size, shape.hidden_size)}
