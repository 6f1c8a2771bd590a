"""Copies of weights in the form in which they run, for what cannot be streamed from the checkpoint's own files.

A change of dtype, a transpose, an interleave, or random weights: such tensors are made once and kept as safetensors
files in a folder per model, named after everything that decides their bytes.
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from headrace.checkpoint.gather import Gather
from headrace.checkpoint.safetensors_reader import read_header
from headrace.checkpoint.tensors import TensorEntry
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError
from headrace.models.layer_image import can_be_read
from headrace.models.safetensors_file import write_tensors
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_conversion import Conversion
from headrace.models.weight_map import Group, Packed, ParameterSource, RandomFill, Stored, WeightMap
from headrace.models.weights import WeightLoader
from headrace.storage.folders import WEIGHTS_FOLDER, DiskTier
from headrace.storage.own_files import copy_metadata
from headrace.units import format_bytes

_FORMAT = 1
"""Raised when the same sources would give other bytes."""


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
        _remove_leftovers(folder)
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
    metadata: Mapping[str, str],
) -> None:
    loader.load(group)
    try:
        tensors = model.state_dict()
        write_tensors(file, {source.name: tensors[source.name] for source in weights.in_group(group)}, metadata)
    finally:
        loader.release(group)


def _remove_leftovers(folder: Path) -> None:
    """Removes what processes that were killed while they wrote have left behind, which takes room and is of no use."""
    for left in folder.glob("*.tmp"):
        with suppress(OSError), left.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its writer lives
            left.unlink()


def _metadata(model: PreTrainedModel, weights: WeightMap) -> dict[str, str]:
    """Says whose copies these are, for people; it does not decide which file is taken."""
    sources = [source for source in weights.parameters.values() if source.group != "rest"]
    name = f"random weights of {model.config.model_type}"
    for source in sources:
        match _unpacked(source).content:
            case Gather(pieces=(piece, *_)):
                name = str(piece.entry.file.parent.absolute())
            case Conversion(inputs=((_, entry), *_)):
                name = str(entry.file.parent.absolute())
            case Stored(entry=stored):
                name = str(stored.codes.file.parent.absolute())
            case _:
                continue
        break
    num_bytes: Counter[str] = Counter()
    for source in sources:
        form = source.content.codec.name if isinstance(source.content, Packed) else source.dtype
        num_bytes[form] += source.num_bytes
    return copy_metadata(name, num_bytes.most_common(1)[0][0])


def _file(folder: Path, sources: Iterable[ParameterSource]) -> Path:
    """The place of a group's copy: its name depends on every file, range and form that decides its bytes."""
    described = [(source.name, source.shape, source.dtype, _describe(source)) for source in sources]
    key = blake2b(json.dumps([_FORMAT, described]).encode(), digest_size=16).hexdigest()
    return folder / f"{key}.safetensors"


def _unpacked(source: ParameterSource) -> ParameterSource:
    return source.content.original if isinstance(source.content, Packed) else source


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
        case Stored(entry=entry, codec=codec):
            tensors = [tensor for tensor in (entry.codes, entry.scales, entry.zeros) if tensor is not None]
            return ["stored", codec.name, *map(_describe_entry, tensors)]
        case Packed(original=original, codec=codec, transposed=transposed):
            return [codec.name, transposed, original.shape, original.dtype, _describe(original)]


def _describe_entry(entry: TensorEntry) -> object:
    try:
        state = entry.file.stat()
    except OSError as error:
        raise CheckpointNotFoundError(
            f"cannot open {entry.file}: {error.strerror}; download or copy the file again"
        ) from error
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
