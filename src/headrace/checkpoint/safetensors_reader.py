"""Reads the headers of safetensors files, with every check that the format allows, and no byte of the tensors.

    | 8 bytes: N, little-endian | N bytes: JSON header | tensors, without gaps, to the end of the file |

A header entry is `"name": {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}`; offsets count from the
header's end.
"""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path, PurePosixPath

from headrace.checkpoint.tensors import DTYPE_BYTES, TensorEntry
from headrace.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, UnsupportedCheckpointError

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
# The reference implementation's own bound.
_MAX_HEADER_BYTES = 100_000_000
_DOWNLOAD_AGAIN = "download or copy the file again"


def read_header(file: Path) -> list[TensorEntry]:
    """Returns the tensors of one safetensors file in the order of their bytes.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CorruptCheckpointError: the header contradicts itself or the file's size, or the file cannot be read.
        UnsupportedCheckpointError: a tensor has a dtype that this version does not know.
    """
    try:
        with file.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            header_bytes = _header_length(file, prefix + stream.read(40), file_bytes)
            stream.seek(8)
            text = stream.read(header_bytes)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"no such file: {file}; {_DOWNLOAD_AGAIN}") from error
    except OSError as error:
        raise CorruptCheckpointError(f"{file}: cannot read it: {error.strerror}; {_DOWNLOAD_AGAIN}") from error
    header = _parse_json(file, text)
    entries = [
        _entry(file, name, value, data_start=8 + header_bytes)
        for name, value in header.items()
        if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: (entry.offset, entry.num_bytes))
    _check_cover(file, entries, data_start=8 + header_bytes, file_bytes=file_bytes)
    return entries


def read_index(index_file: Path) -> dict[str, str]:
    """Returns tensor name -> file name from a `*.index.json`; the names are checked to lie in the index's own folder.

    Raises:
        CorruptCheckpointError: not the JSON of an index, or a file name that leads out of the folder.
    """
    try:
        weight_map = json.loads(index_file.read_bytes())["weight_map"]
        if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
            raise TypeError("weight_map is not an object of strings")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(
            f"{index_file}: not an index of shards ({type(error).__name__}: {error}); "
            f'expected {{"weight_map": {{tensor: file}}}}; {_DOWNLOAD_AGAIN}'
        ) from error
    for name, file_name in weight_map.items():
        path = PurePosixPath(file_name)
        if not file_name or path.is_absolute() or ".." in path.parts or "\\" in file_name:
            raise CorruptCheckpointError(
                f"{index_file}: tensor {name} is said to lie in {file_name!r}, outside the checkpoint's folder; "
                "expected a plain file name; do not use this checkpoint"
            )
    return weight_map


def describe_wrong_start(start: bytes) -> str | None:
    """Says what a file that is no weights file really is, when its first bytes give it away."""
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the weights; run `git lfs pull` in the checkpoint's folder"
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return f"it is a web page, not the weights; {_DOWNLOAD_AGAIN}"
    return None


def _header_length(file: Path, start: bytes, file_bytes: int) -> int:
    if wrong := describe_wrong_start(start):
        raise CorruptCheckpointError(f"{file}: not a safetensors file; {wrong}")
    if len(start) < 8:
        raise CorruptCheckpointError(
            f"{file}: {file_bytes} bytes long, too short for a safetensors header; {_DOWNLOAD_AGAIN}"
        )
    length = int.from_bytes(start[:8], "little")
    if length > _MAX_HEADER_BYTES or start[8:9] not in (b"{", b""):
        raise CorruptCheckpointError(f"{file}: does not begin with a safetensors header; {_DOWNLOAD_AGAIN}")
    if 8 + length > file_bytes:
        raise CorruptCheckpointError(
            f"{file}: truncated: the header alone takes {8 + length} bytes, the file has {file_bytes}; "
            f"{_DOWNLOAD_AGAIN}"
        )
    return length


def _parse_json(file: Path, text: bytes) -> dict[str, object]:
    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CorruptCheckpointError(f"{file}: the header holds {twice} twice; {_DOWNLOAD_AGAIN}")
        return values

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file}: the header is not JSON ({error}); {_DOWNLOAD_AGAIN}") from error
    if not isinstance(header, dict):
        raise CorruptCheckpointError(f"{file}: the header is no JSON object; {_DOWNLOAD_AGAIN}")
    return header


def _entry(file: Path, name: str, value: object, *, data_start: int) -> TensorEntry:
    def fault(what: str) -> CheckpointError:
        return CorruptCheckpointError(f"{file}: tensor {name}: {what}; {_DOWNLOAD_AGAIN}")

    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise fault("its header entry lacks dtype, shape or data_offsets")
    dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fault(f"shape {shape!r} with data_offsets {offsets!r} cannot be")
    dtype = _DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise UnsupportedCheckpointError(
            f"{file}: tensor {name} has dtype {dtype_name!r}, which this version does not read; "
            "use a checkpoint in bfloat16, float16 or float32"
        )
    begin, end = offsets
    num_bytes = prod(shape) * DTYPE_BYTES[dtype]
    if num_bytes != end - begin:
        raise fault(f"shape {shape} in {dtype} is {num_bytes} bytes, but its data_offsets span {end - begin}")
    return TensorEntry(
        name=name, file=file, offset=data_start + begin, num_bytes=num_bytes, dtype=dtype, shape=tuple(shape)
    )


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_cover(file: Path, entries: list[TensorEntry], *, data_start: int, file_bytes: int) -> None:
    """Checks that the tensors follow one another without overlap or gap and end with the file."""
    position = data_start
    for entry in entries:
        if entry.offset != position:
            what = "overlaps the tensor before it" if entry.offset < position else "leaves a gap before it"
            raise CorruptCheckpointError(f"{file}: tensor {entry.name} {what}; {_DOWNLOAD_AGAIN}")
        position += entry.num_bytes
        if position > file_bytes:
            raise CorruptCheckpointError(
                f"{file}: truncated: tensor {entry.name} ends at byte {position}, the file has {file_bytes}; "
                f"{_DOWNLOAD_AGAIN}"
            )
    if position != file_bytes:
        raise CorruptCheckpointError(
            f"{file}: {file_bytes - position} bytes follow the last tensor; expected none; {_DOWNLOAD_AGAIN}"
        )
