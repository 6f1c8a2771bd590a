"""Copies of weights in the form in which they run, for what cannot be streamed from the checkpoint's own files.

A change of dtype, a transpose, an interleave, or random weights: such tensors are made once and kept as safetensors
files in a folder per model, named after everything that decides their bytes.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import torch

from headrace.checkpoint.gather import Gather
from headrace.checkpoint.safetensors_reader import read_header
from headrace.checkpoint.tensors import TensorEntry
from headrace.errors import CorruptCheckpointError, DiskSpaceError
from headrace.models.layer_image import can_be_read
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_conversion import Conversion
from headrace.models.weight_map import Group, ParameterSource, RandomFill, WeightMap
from headrace.models.weights import WeightLoader
from headrace.storage.folders import WEIGHTS_FOLDER, DiskTier
from headrace.storage.own_files import copy_metadata
from headrace.units import format_bytes

_FORMAT = 1
"""Raised when the same sources would give other bytes."""
_DTYPE_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}


def groups_to_copy(weights: WeightMap) -> list[Group]:
    """Returns the groups of a model that hold anything that cannot be streamed as it is."""
    return [
        group
        for group in weights.groups
        if group != "rest" and not all(can_be_read(source) for source in weights.in_group(group))
    ]


def with_copies(
    model: PreTrainedModel, weights: WeightMap, disk: DiskTier, note: Callable[[str], None] = lambda _: None
) -> WeightMap:
    """Returns `weights` with copies in the place of what cannot be streamed; makes those that are not there yet.

    One group at a time is in memory, `max(weights.group_bytes(group) for group in groups_to_copy(weights))`.

    Raises:
        DiskSpaceError: the folder's disk has too little room, or may not be written.
        CheckpointError: the checkpoint cannot be read.
    """
    groups = groups_to_copy(weights)
    folder = disk.folder / WEIGHTS_FOLDER
    files = {group: _file(folder, weights.in_group(group)) for group in groups}
    missing = [group for group in groups if not _is_complete(files[group], weights.in_group(group))]
    if missing:
        num_bytes = sum(weights.group_bytes(group) for group in missing)
        disk.require("a copy of the weights in the form in which they run", num_bytes)
        note(f"writing {format_bytes(num_bytes)} of weights in their running form to {folder}, once")
        metadata = _metadata(model, weights)
        with WeightLoader(model, weights) as loader:
            for group in missing:
                _write(loader, model, weights, group, files[group], metadata)
    parameters = dict(weights.parameters)
    for group in groups:
        for entry in read_header(files[group]):
            parameters[entry.name] = replace(parameters[entry.name], content=Gather.whole(entry))
    return replace(weights, parameters=parameters)


def _write(
    loader: WeightLoader,
    model: PreTrainedModel,
    weights: WeightMap,
    group: Group,
    file: Path,
    metadata: dict[str, str],
) -> None:
    loader.load(group)
    try:
        tensors = model.state_dict()
        sources = weights.in_group(group)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(_header(sources, metadata))
                for source in sources:
                    flat = tensors[source.name].detach().contiguous().view(-1)
                    if flat.numel():
                        stream.write(flat.view(torch.uint8).numpy().data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(file)
        except OSError as error:
            raise _cannot_write(file.parent, error) from error
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        loader.release(group)


def _metadata(model: PreTrainedModel, weights: WeightMap) -> dict[str, str]:
    """Says whose copies these are, for people; it does not decide which file is taken."""
    sources = [source for source in weights.parameters.values() if source.group != "rest"]
    name = f"random weights of {model.config.model_type}"
    for source in sources:
        match source.content:
            case Gather(pieces=(piece, *_)):
                name = str(piece.entry.file.parent.absolute())
            case Conversion(inputs=((_, entry), *_)):
                name = str(entry.file.parent.absolute())
            case _:
                continue
        break
    num_bytes: Counter[str] = Counter()
    for source in sources:
        num_bytes[source.dtype] += source.num_bytes
    return copy_metadata(name, num_bytes.most_common(1)[0][0])


def _header(sources: Iterable[ParameterSource], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata}
    begin = 0
    for source in sources:
        end = begin + source.num_bytes
        header[source.name] = {
            "dtype": _DTYPE_CODES[source.dtype],
            "shape": source.shape,
            "data_offsets": (begin, end),
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _file(folder: Path, sources: Iterable[ParameterSource]) -> Path:
    """The place of a group's copy: its name depends on every file, range and form that decides its bytes."""
    described = [(source.name, source.shape, source.dtype, _describe(source)) for source in sources]
    key = blake2b(json.dumps([_FORMAT, described]).encode(), digest_size=16).hexdigest()
    return folder / f"{key}.safetensors"


def _describe(source: ParameterSource) -> object:
    match source.content:
        case RandomFill(seed=seed):
            return ["random", seed]
        case Gather(pieces=pieces):
            return [
                [_describe_entry(piece.entry), piece.source.start, piece.target.start, piece.target.shape]
                for piece in pieces
            ]
        case Conversion(inputs=inputs):
            return [[pattern, _describe_entry(entry)] for pattern, entry in inputs]


def _describe_entry(entry: TensorEntry) -> object:
    state = entry.file.stat()
    return [str(entry.file.resolve()), state.st_size, state.st_mtime_ns, entry.offset, entry.dtype, entry.strides]


def _is_complete(file: Path, sources: Iterable[ParameterSource]) -> bool:
    """Whether a copy is there and whole; half a file is never under its final name, but disks lose things."""
    if not file.exists():
        return False
    try:
        found = {entry.name: entry.shape for entry in read_header(file)}
    except CorruptCheckpointError:
        return False
    return found == {source.name: source.shape for source in sources}


def _cannot_write(folder: Path, error: OSError) -> DiskSpaceError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room there" if full else "make it writable"
    return DiskSpaceError(f"{folder}: cannot write: {error.strerror}; {remedy}, or name another with --disk FOLDER")
