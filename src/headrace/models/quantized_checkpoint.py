"""Writes a checkpoint whose linear layers are packed in 8 or 4 bits, in the compressed-tensors format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.gather import Gather
from headrace.checkpoint.packed_tensors import PackedScheme
from headrace.checkpoint.reader import RangeReader
from headrace.checkpoint.safetensors_writer import TensorShape
from headrace.checkpoint.tensors import TensorEntry
from headrace.compression.stored_codes import stored_tensors
from headrace.compression.weight_codecs import Int4Codec, Int8Codec
from headrace.errors import DiskSpaceError, OptionError, UnsupportedCheckpointError
from headrace.models.packed_layers import pack_layers
from headrace.models.safetensors_file import tensor_shape, write_safetensors
from headrace.models.skeleton import build_outline, checkpoint_dtype
from headrace.models.weight_map import Packed, build_weight_map

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.md", "LICENSE*")
_NOT_COPIED = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written: packed layers, and bytes before and after."""

    num_layers: int
    read_bytes: int
    written_bytes: int


def write_quantized(
    source: Path, target: Path, codec: Int8Codec | Int4Codec, note: Callable[[str], None] = lambda _: None
) -> Written:
    """Packs the checkpoint in `source` into the new folder `target`; it has its name only once it is whole.

    Embedding, head, merged experts and what `codec` does not fit are copied as they are.

    Raises:
        OptionError: `target` is there already.
        UnsupportedCheckpointError: `source` is quantized already, or has nothing to pack.
        CheckpointError: `source` cannot be read.
        DiskSpaceError: the disk is full, or the folder cannot be written.
    """
    if target.exists():
        raise OptionError(f"{target} is there already; name a folder that is not")
    checkpoint = Checkpoint.open(source)
    if checkpoint.packed:
        raise UnsupportedCheckpointError(f"{source}: the weights are quantized already; use the original checkpoint")
    packed, ignored = _what_to_pack(source, checkpoint, codec)
    if not packed:
        raise UnsupportedCheckpointError(
            f"{source}: no linear layer of this model becomes smaller; there is nothing to do"
        )
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _copy_files(source, unfinished)
        scheme = PackedScheme(
            num_bits=4 if isinstance(codec, Int4Codec) else 8,
            group_size=codec.group_size if isinstance(codec, Int4Codec) else None,
        )
        config = {**checkpoint.config, "quantization_config": scheme.to_config(ignored)}
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        written_bytes = _write_weights(checkpoint, unfinished, packed, codec, note)
        unfinished.rename(target)
    except OSError as error:
        raise DiskSpaceError(f"{target}: cannot write: {error.strerror}; name a folder on a disk with room") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(unfinished, ignore_errors=True)
    return Written(num_layers=len(packed), read_bytes=checkpoint.num_bytes, written_bytes=written_bytes)


def _what_to_pack(
    source: Path, checkpoint: Checkpoint, codec: Int8Codec | Int4Codec
) -> tuple[frozenset[str], list[str]]:
    """Returns the checkpoint's names of weights to pack, and the model's names of linear layers that stay."""
    model = build_outline(source, checkpoint_dtype(checkpoint))
    weights = pack_layers(model, build_weight_map(model, checkpoint), codec)
    names = set()
    for parameter in weights.parameters.values():
        match parameter.content:
            case Packed(original=original, transposed=False) if isinstance(original.content, Gather):
                names.add(original.content.pieces[0].entry.name)
    return frozenset(names), [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _copy_files(source: Path, target: Path) -> None:
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copy(file, target)


def _write_weights(
    checkpoint: Checkpoint,
    target: Path,
    packed: frozenset[str],
    codec: Int8Codec | Int4Codec,
    note: Callable[[str], None],
) -> int:
    """Writes one file for each of the checkpoint's, and their index; returns the bytes of all tensors."""
    by_file: dict[Path, list[TensorEntry]] = {}
    for entry in checkpoint.entries.values():
        by_file.setdefault(entry.file, []).append(entry)
    places: dict[str, str] = {}
    num_bytes = 0
    with RangeReader() as reader:
        for index, entries in enumerate(by_file.values(), start=1):
            name = f"model-{index:05}-of-{len(by_file):05}.safetensors" if len(by_file) > 1 else "model.safetensors"
            note(f"writing {name}, {index} of {len(by_file)}")
            shapes = [shape for entry in entries for shape in _shapes(entry, packed, codec)]
            tensors = (
                tensor for entry in entries for tensor in _tensors(_read(reader, entry), entry, packed, codec).values()
            )
            write_safetensors(target / name, shapes, tensors, {"format": "pt"})
            places.update({shape.name: name for shape in shapes})
            num_bytes += sum(shape.num_bytes for shape in shapes)
    if len(by_file) > 1:
        index_text = json.dumps({"metadata": {"total_size": num_bytes}, "weight_map": places}, indent=2)
        (target / "model.safetensors.index.json").write_text(index_text + "\n", encoding="utf-8")
    return num_bytes


def _shapes(entry: TensorEntry, packed: frozenset[str], codec: Int8Codec | Int4Codec) -> Iterator[TensorShape]:
    """What is written for one tensor, found out with a tensor of zeros on the meta device."""
    empty = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype), device="meta")
    for name, tensor in _tensors(empty, entry, packed, codec).items():
        yield tensor_shape(name, tensor)


def _tensors(
    tensor: Tensor, entry: TensorEntry, packed: frozenset[str], codec: Int8Codec | Int4Codec
) -> Mapping[str, Tensor]:
    if entry.name not in packed:
        return {entry.name: tensor}
    base = entry.name.removesuffix("weight")
    return {f"{base}{part}": made for part, made in stored_tensors(codec, tensor).items()}


def _read(reader: RangeReader, entry: TensorEntry) -> Tensor:
    stored = torch.empty(entry.num_bytes // entry.itemsize, dtype=getattr(torch, entry.dtype))
    reader.read_into(entry.file, entry.offset, stored.view(torch.uint8).numpy().data)
    return stored.view(entry.shape) if entry.strides is None else stored.as_strided(entry.shape, entry.strides)
