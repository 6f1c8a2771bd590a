"""Checkpoints of random weights, written a layer at a time."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast

from benchmarks.llama_shape import LlamaShape
from benchmarks.opt_shape import OptShape
from benchmarks.weight_files import drop_from_cache, weight_files

Shape = LlamaShape | OptShape

_INDEX = "model.safetensors.index.json"
_SPREAD = 0.02
"""Standard deviation of all matrices: what the models' own initialisation uses."""


def make_model(folder: Path, shape: Shape, dtype: str) -> int:
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


def _write(folder: Path, shape: Shape, dtype: str) -> None:
    for old in weight_files(folder):
        old.unlink()
    AutoConfig.for_model(
        shape.model_type, **asdict(shape), eos_token_id=None, architectures=[shape.architecture], dtype=dtype
    ).save_pretrained(folder)
    words = {f"w{index}": index for index in range(shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    total_bytes = 0
    for number, sizes in enumerate(shape.files()):
        tensors = {name: _made(name, size, getattr(torch, dtype), generator) for name, size in sizes.items()}
        file = folder / f"model-{number:05}.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        drop_from_cache(file)
        places.update(dict.fromkeys(tensors, file.name))
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": places}))


def _made(name: str, size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Matrices are random; of a norm's numbers the weights are ones, and all biases zeros."""
    if len(size) > 1:
        return torch.empty(size, dtype=dtype).normal_(std=_SPREAD, generator=generator)
    return (torch.zeros if name.endswith(".bias") else torch.ones)(size, dtype=dtype)
