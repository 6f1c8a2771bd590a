"""Which files of a directory are its weights, and which formats this version refuses by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.checkpoint.files import check_place
from headrace.checkpoint.safetensors_reader import read_index
from headrace.checkpoint.tensors import TensorEntry
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError

_USE_PLAIN = "use the original checkpoint in bfloat16, float16 or float32 (safetensors or .bin)"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
# Tensor names that only quantized checkpoints have.
_QUANTIZED_NAMES = {
    "qweight": "AWQ or GPTQ",
    "qzeros": "AWQ or GPTQ",
    "weight_packed": "compressed-tensors",
    "weight_scale_inv": "FP8",
    "absmax": "bitsandbytes",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFiles:
    """The weight files of a checkpoint, in order, and the index that names their tensors, if there is one."""

    format: Literal["safetensors", "torch_bin"]
    files: tuple[Path, ...]
    index_file: Path | None
    index: Mapping[str, str]


def check_is_directory(path: Path) -> None:
    """Raises unless `path` is a directory; a single weights file gets an answer of its own."""
    if path.is_dir():
        return
    if path.suffix == ".gguf" and path.exists():
        raise _gguf(path)
    if path.exists():
        raise CheckpointNotFoundError(
            f"{path} is a file; expected a directory with config.json and weights; give its folder: {path.parent}"
        )
    raise CheckpointNotFoundError(f"no such directory: {path}; expected a folder with config.json and weights")


def describe_without_config(path: Path) -> str:
    """Says what a directory without config.json holds and what to do about it."""
    if gguf := sorted(path.glob("*.gguf")):
        return str(_gguf(gguf[0]))
    if (path / "adapter_config.json").exists():
        return "this is a LoRA adapter, not a model; give the base model's folder"
    if (path / "params.json").exists():
        return "these are Meta's or Mistral's original files; use the repository's Hugging Face form"
    return "expected a Hugging Face checkpoint directory"


def check_tensors(entries: Mapping[str, TensorEntry]) -> None:
    """Raises UnsupportedCheckpointError when a tensor's name or dtype shows that the weights are quantized."""
    for entry in entries.values():
        if entry.dtype.startswith("float8"):
            method: str | None = f"FP8 ({entry.dtype})"
        else:
            method = _QUANTIZED_NAMES.get(entry.name.rpartition(".")[2])
        if method:
            raise UnsupportedCheckpointError(
                f"{entry.file}: tensor {entry.name} is quantized ({method}), which this version does not read; "
                f"{_USE_PLAIN}"
            )


def find_weights(path: Path) -> WeightFiles:
    """Finds the weight files of a directory: safetensors before `.bin`, never both.

    Raises:
        CheckpointNotFoundError: no weights, or a shard is missing.
        CorruptCheckpointError: the index is damaged.
        UnsafeCheckpointError: a link that leads out of the folder.
        UnsupportedCheckpointError: weights of another format only.
    """
    for format_name, stem, suffix in (
        ("safetensors", "model", ".safetensors"),
        ("torch_bin", "pytorch_model", ".bin"),
    ):
        kind: Literal["safetensors", "torch_bin"] = "safetensors" if format_name == "safetensors" else "torch_bin"
        single, index_file = path / f"{stem}{suffix}", path / f"{stem}{suffix}.index.json"
        # A link to nothing is there, too: it is named and not passed over.
        if os.path.lexists(single):
            weights = WeightFiles(format=kind, files=(single,), index_file=None, index={})
        elif os.path.lexists(index_file):
            weights = _from_index(path, kind, index_file)
        elif shards := sorted(path.glob(f"{stem}-*{suffix}")):
            weights = _from_shards(path, kind, shards)
        else:
            continue
        for file in weights.files:
            check_place(file, path)
        return weights
    raise _no_weights(path)


def check_index(weights: WeightFiles, entries: Mapping[str, TensorEntry]) -> None:
    """Raises CorruptCheckpointError when the index names a tensor that its shard does not hold."""
    if weights.index_file is None:
        return
    wrong = [
        f"{name} (said to be in {file})"
        for name, file in weights.index.items()
        if name not in entries or entries[name].file != weights.index_file.parent / file
    ]
    if wrong:
        raise CorruptCheckpointError(
            f"{weights.index_file}: {len(wrong)} tensors are not in the files that the index names: {_shorten(wrong)}; "
            "index and shards belong to different checkpoints; download or copy all of them again"
        )


def _from_index(path: Path, kind: Literal["safetensors", "torch_bin"], index_file: Path) -> WeightFiles:
    check_place(index_file, path)
    index = read_index(index_file)
    files = tuple(path / name for name in sorted(set(index.values())))
    missing = [file.name for file in files if not os.path.lexists(file)]
    if missing:
        raise CheckpointNotFoundError(
            f"{path}: {len(missing)} of {len(files)} weight files named in {index_file.name} are missing: "
            f"{_shorten(missing)}; download or copy them again"
        )
    return WeightFiles(format=kind, files=files, index_file=index_file, index=index)


def _from_shards(path: Path, kind: Literal["safetensors", "torch_bin"], shards: list[Path]) -> WeightFiles:
    numbered = {int(match[1]): int(match[2]) for file in shards if (match := _SHARD.search(file.name))}
    expected = max(numbered.values(), default=0)
    missing = sorted(set(range(1, expected + 1)) - numbered.keys())
    if missing:
        raise CheckpointNotFoundError(
            f"{path}: beside {shards[0].name}, shards {_shorten(str(number) for number in missing)} of {expected} "
            "are missing; "
            "download or copy them again"
        )
    return WeightFiles(format=kind, files=tuple(shards), index_file=None, index={})


def _no_weights(path: Path) -> CheckpointNotFoundError | UnsupportedCheckpointError:
    if gguf := sorted(path.glob("*.gguf")):
        return _gguf(gguf[0])
    others = [
        file.name
        for pattern in ("*.safetensors", "*.bin", "*.h5", "*.msgpack", "*.pth", "*.pt", "*.onnx")
        for file in sorted(path.glob(pattern))
    ]
    if others:
        return UnsupportedCheckpointError(
            f"{path}: found {_shorten(others)}, but neither model.safetensors nor pytorch_model.bin nor their shards; "
            "use the Hugging Face form of the checkpoint"
        )
    return CheckpointNotFoundError(
        f"{path}: config.json without weights; expected model.safetensors or pytorch_model.bin (or their shards); "
        "download them, or use --load-format dummy for random weights"
    )


def _gguf(file: Path) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(f"{file}: GGUF files are not read by this version; {_USE_PLAIN}")


def _shorten(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
