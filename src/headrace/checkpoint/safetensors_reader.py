"""Reads the headers of safetensors files, with every check that the format allows, and no byte of the tensors.

    | 8 bytes: N, little-endian | N bytes: JSON header | tensors, without gaps, to the end of the file |

A header entry is `"name": {"dtype": "BF16", "shape": [...], "data_offsets": [begin, end]}`; offsets count from the
header's end.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NoReturn

from headrace.checkpoint.files import DOWNLOAD_AGAIN, MAX_JSON_BYTES, describe_wrong_start, open_plain, read_json
from headrace.checkpoint.tensors import DTYPE_BYTES, TensorEntry
from headrace.errors import CheckpointError, CorruptCheckpointError, UnsupportedCheckpointError

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
# An exbibyte: more than any disk holds. What is multiplied stays below it, so that no number grows without end.
_MAX_SIZE = 2**60
_MAX_DIGITS = 19
_MAX_FILE_NAME_BYTES = 255
_MAX_NAME_LENGTH = 1000


def read_header(file: Path) -> list[TensorEntry]:
    """Returns the tensors of one safetensors file in the order of their bytes.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CorruptCheckpointError: the header contradicts itself or the file's size, or the file cannot be read.
        UnsupportedCheckpointError: a tensor has a dtype that this version does not know.
    """
    with open_plain(file) as stream:
        try:
            file_bytes = os.fstat(stream.fileno()).st_size
            header_bytes = _header_length(file, stream.read(48), file_bytes)
            stream.seek(8)
            text = stream.read(header_bytes)
        except OSError as error:
            raise CorruptCheckpointError(f"{file}: cannot read it: {error.strerror}; {DOWNLOAD_AGAIN}") from error
    header = _parse_json(file, text)
    entries = [_entry(file, name, value, data_start=8 + header_bytes) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.num_bytes))
    _check_cover(file, entries, data_start=8 + header_bytes, file_bytes=file_bytes)
    return entries


def read_index(index_file: Path) -> dict[str, str]:
    """Returns tensor name -> file name from a `*.index.json`; the names are checked to lie in the index's own folder.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CorruptCheckpointError: not the JSON of an index, or a name that leads out of the folder or is none of a shard.
    """
    weight_map = read_json(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(
            f"{index_file}: not an index of shards: weight_map is {reprlib.repr(weight_map)}; "
            f'expected {{"weight_map": {{tensor: file}}}}; {DOWNLOAD_AGAIN}'
        )
    for name, file_name in weight_map.items():
        if fault := _shard_name_fault(file_name, PurePosixPath(index_file.name.removesuffix(".index.json")).suffix):
            raise CorruptCheckpointError(f"{index_file}: tensor {reprlib.repr(name)} is said to lie in {fault}")
    return weight_map


def _shard_name_fault(file_name: object, suffix: str) -> str | None:
    """Says why a name of an index cannot be a shard's, and what to do."""
    shown = reprlib.repr(file_name)
    if not isinstance(file_name, str):
        return f"{shown}; not an index of shards: expected a file name; {DOWNLOAD_AGAIN}"
    path = PurePosixPath(file_name)
    if not file_name or path.is_absolute() or ".." in path.parts or "\\" in file_name:
        return f"{shown}, outside the checkpoint's folder; expected a plain file name; do not use this checkpoint"
    parts = [part.encode(errors="replace") for part in path.parts]
    if not file_name.isprintable() or any(len(part) > _MAX_FILE_NAME_BYTES for part in parts):
        return f"{shown}, which cannot be the name of a file; {DOWNLOAD_AGAIN}"
    if path.suffix != suffix:
        return f"{shown}; expected the name of a {suffix} file; {DOWNLOAD_AGAIN}"
    return None


def _header_length(file: Path, start: bytes, file_bytes: int) -> int:
    if wrong := describe_wrong_start(start):
        raise CorruptCheckpointError(f"{file}: not a safetensors file; {wrong}")
    if len(start) < 8:
        raise CorruptCheckpointError(
            f"{file}: {file_bytes} bytes long, too short for a safetensors header; {DOWNLOAD_AGAIN}"
        )
    length = int.from_bytes(start[:8], "little")
    if length > MAX_JSON_BYTES or start[8:9] not in (b"{", b""):
        raise CorruptCheckpointError(f"{file}: does not begin with a safetensors header; {DOWNLOAD_AGAIN}")
    if 8 + length > file_bytes:
        raise CorruptCheckpointError(
            f"{file}: truncated: the header alone takes {8 + length} bytes, the file has {file_bytes}; {DOWNLOAD_AGAIN}"
        )
    return length


def _parse_json(file: Path, text: bytes) -> dict[str, object]:
    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise CorruptCheckpointError(f"{file}: the header holds {reprlib.repr(twice)} twice; {DOWNLOAD_AGAIN}")
        return values

    try:
        # `json` would take the text of other encodings, too; the format is UTF-8.
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=without_duplicates,
            parse_int=_parse_size,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file}: the header is not JSON ({error}); {DOWNLOAD_AGAIN}") from error
    if not isinstance(header, dict):
        raise CorruptCheckpointError(f"{file}: the header is no JSON object; {DOWNLOAD_AGAIN}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptCheckpointError(
            f"{file}: the header's __metadata__ is {reprlib.repr(metadata)}; expected texts by name; {DOWNLOAD_AGAIN}"
        )
    return header


def _parse_size(digits: str) -> int | str:
    """A number of the header; one that no size can be stays as it is written, for the message."""
    return int(digits) if digits.isdecimal() and len(digits) <= _MAX_DIGITS else digits


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def _entry(file: Path, name: str, value: object, *, data_start: int) -> TensorEntry:
    def fault(what: str) -> CheckpointError:
        return CorruptCheckpointError(f"{file}: tensor {name}: {what}; {DOWNLOAD_AGAIN}")

    if len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise CorruptCheckpointError(f"{file}: {reprlib.repr(name)} cannot be a tensor's name; {DOWNLOAD_AGAIN}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise fault("its header entry lacks dtype, shape or data_offsets, or has more than these")
    dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fault(f"shape {reprlib.repr(shape)} with data_offsets {reprlib.repr(offsets)} cannot be")
    dtype = _DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise UnsupportedCheckpointError(
            f"{file}: tensor {name} has dtype {reprlib.repr(dtype_name)}, which this version does not read; "
            "use a checkpoint in bfloat16, float16 or float32"
        )
    begin, end = offsets
    num_bytes = _num_bytes(shape, DTYPE_BYTES[dtype])
    if num_bytes is None:
        raise fault(f"shape {reprlib.repr(shape)} is too large for any file")
    if num_bytes != end - begin:
        raise fault(
            f"shape {reprlib.repr(shape)} in {dtype} is {num_bytes} bytes, but its data_offsets span {end - begin}"
        )
    return TensorEntry(
        name=name, file=file, offset=data_start + begin, num_bytes=num_bytes, dtype=dtype, shape=tuple(shape)
    )


def _num_bytes(shape: list[int], itemsize: int) -> int | None:
    """The bytes of a tensor; None where they, or those of its first dimensions, are beyond every file."""
    num_bytes = itemsize
    for size in shape:
        num_bytes *= size
        if num_bytes > _MAX_SIZE:
            return None
    return num_bytes


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_cover(file: Path, entries: list[TensorEntry], *, data_start: int, file_bytes: int) -> None:
    """Checks that the tensors follow one another without overlap or gap and end with the file."""
    position = data_start
    for entry in entries:
        if entry.offset != position:
            what = "overlaps the tensor before it" if entry.offset < position else "leaves a gap before it"
            raise CorruptCheckpointError(f"{file}: tensor {entry.name} {what}; {DOWNLOAD_AGAIN}")
        position += entry.num_bytes
        if position > file_bytes:
            raise CorruptCheckpointError(
                f"{file}: truncated: tensor {entry.name} ends at byte {position}, the file has {file_bytes}; "
                f"{DOWNLOAD_AGAIN}"
            )
    if position != file_bytes:
        raise CorruptCheckpointError(
            f"{file}: {file_bytes - position} bytes follow the last tensor; expected none; {DOWNLOAD_AGAIN}"
        )
