"""Finds the tensors of a torch `.bin` file as byte ranges, without torch and without running the pickle's code.

Two layouts, both a pickle of `name -> tensor` whose storages lie elsewhere in the file:

* since torch 1.6 a zip archive: `<root>/data.pkl`, and each storage uncompressed in `<root>/data/<key>`;
* before: magic number, protocol and machine as pickles, the pickle of tensors, the list of storage keys, and then each
  storage as its length in elements (8 bytes) and its data.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

from headrace.checkpoint.safetensors_reader import describe_wrong_start
from headrace.checkpoint.tensors import DTYPE_BYTES, TensorEntry
from headrace.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_DOWNLOAD_AGAIN = "download or copy the file again"


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    num_elements: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


def read_torch_bin(file: Path) -> list[TensorEntry]:
    """Returns the tensors of one `.bin` file.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafeCheckpointError: the pickle names anything but tensors and plain containers.
        CorruptCheckpointError: truncated, or not such a file at all.
        UnsupportedCheckpointError: a tensor of a kind that this version does not read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
            stream.seek(0)
            if wrong := describe_wrong_start(start):
                raise CorruptCheckpointError(f"{file}: not a torch file; {wrong}")
            if start.startswith(b"PK\x03\x04"):
                tensors, places = _read_zip(file, stream)
            else:
                tensors, places = _read_legacy(file, stream)
            file_bytes = stream.seek(0, io.SEEK_END)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"no such file: {file}; {_DOWNLOAD_AGAIN}") from error
    return [_entry(file, name, tensor, places, file_bytes) for name, tensor in tensors.items()]


def _read_zip(file: Path, stream: IO[bytes]) -> tuple[Mapping[str, _Tensor], Mapping[str, int]]:
    try:
        archive = zipfile.ZipFile(stream)
        pickle_name = next(name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl")
        root = pickle_name.removesuffix("data.pkl")
        tensors = _unpickle(file, io.BytesIO(archive.read(pickle_name)))
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
            raise UnsupportedCheckpointError(f"{file}: written on a big-endian machine; use a safetensors checkpoint")
        records = [info for info in archive.infolist() if info.filename.startswith(root + "data/")]
    except (zipfile.BadZipFile, StopIteration, EOFError) as error:
        raise CorruptCheckpointError(
            f"{file}: truncated or not a torch file ({str(error) or 'no data.pkl in it'}); {_DOWNLOAD_AGAIN}"
        ) from error
    return tensors, {info.filename.removeprefix(root + "data/"): _data_offset(file, stream, info) for info in records}


def _data_offset(file: Path, stream: IO[bytes], info: zipfile.ZipInfo) -> int:
    """The place of a record's data: behind its local header, whose padding the archive's directory does not know."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise UnsupportedCheckpointError(f"{file}: {info.filename} is compressed; save the checkpoint again with torch")
    stream.seek(info.header_offset)
    header = stream.read(30)
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise CorruptCheckpointError(f"{file}: no record where {info.filename} should be; {_DOWNLOAD_AGAIN}")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name_bytes) + int(extra_bytes)


def _read_legacy(file: Path, stream: IO[bytes]) -> tuple[Mapping[str, _Tensor], Mapping[str, int]]:
    storages: dict[str, _Storage] = {}
    try:
        magic = _RestrictedUnpickler(file, stream).load()
        if magic != _LEGACY_MAGIC:
            raise CorruptCheckpointError(f"{file}: not a torch file; {_DOWNLOAD_AGAIN}")
        _RestrictedUnpickler(file, stream).load()
        machine = _RestrictedUnpickler(file, stream).load()
        if not (isinstance(machine, dict) and machine.get("little_endian") is True):
            raise UnsupportedCheckpointError(f"{file}: written on a big-endian machine; use a safetensors checkpoint")
        tensors = _unpickle(file, stream, storages)
        keys = _RestrictedUnpickler(file, stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{file}: truncated or not a torch file ({error}); {_DOWNLOAD_AGAIN}") from error
    places: dict[str, int] = {}
    position = stream.tell()
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(key)
        stream.seek(position)
        if storage is None or stream.read(8) != struct.pack("<q", storage.num_elements):
            raise CorruptCheckpointError(f"{file}: storage {key!r} is not where it should be; {_DOWNLOAD_AGAIN}")
        places[key] = position + 8
        position += 8 + storage.num_elements * DTYPE_BYTES[storage.dtype]
    return tensors, places


def _unpickle(file: Path, stream: IO[bytes], storages: dict[str, _Storage] | None = None) -> Mapping[str, _Tensor]:
    try:
        value = _RestrictedUnpickler(file, stream, storages).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{file}: its pickle is damaged ({error}); {_DOWNLOAD_AGAIN}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{file}: holds a {type(value).__name__}; expected tensors by name")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise CorruptCheckpointError(
                f"{file}: {name!r} is a {type(tensor).__name__}; expected a tensor; "
                "save the model's state_dict alone, or use a safetensors checkpoint"
            )
    return value


def _entry(file: Path, name: str, tensor: _Tensor, places: Mapping[str, int], file_bytes: int) -> TensorEntry:
    storage = tensor.storage
    itemsize = DTYPE_BYTES[storage.dtype]
    contiguous = tensor.strides == _row_major(tensor.shape) or prod(tensor.shape) <= 1
    span = _span(tensor.shape, tensor.strides)
    if storage.key not in places or tensor.offset < 0 or tensor.offset + span > storage.num_elements:
        raise CorruptCheckpointError(f"{file}: tensor {name} reaches beyond its storage; {_DOWNLOAD_AGAIN}")
    offset = places[storage.key] + tensor.offset * itemsize
    if offset + span * itemsize > file_bytes:
        raise CorruptCheckpointError(
            f"{file}: truncated: tensor {name} ends at byte {offset + span * itemsize}, the file has {file_bytes}; "
            f"{_DOWNLOAD_AGAIN}"
        )
    return TensorEntry(
        name=name,
        file=file,
        offset=offset,
        num_bytes=span * itemsize,
        dtype=storage.dtype,
        shape=tensor.shape,
        strides=None if contiguous else tensor.strides,
    )


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The number of elements from a tensor's first to its last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> _Tensor:
    valid = (
        isinstance(storage, _Storage)
        and isinstance(offset, int)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides)
        and all(type(size) is int and size >= 0 for size in (*shape, *strides))
    )
    if not valid:
        raise pickle.UnpicklingError("a tensor is described in an unknown way")
    return _Tensor(storage, offset, shape, strides)  # type: ignore[arg-type]


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows tensors, their storages and plain containers. Every other global is refused before it is looked up."""

    def __init__(self, file: Path, stream: IO[bytes], storages: dict[str, _Storage] | None = None) -> None:
        super().__init__(stream)
        self._file = file
        self._storages: dict[str, _Storage] = {} if storages is None else storages

    def find_class(self, module: str, name: str) -> object:
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise UnsafeCheckpointError(
            f"{self._file}: the pickle asks for {module}.{name}, which may run code; expected nothing but tensors; "
            "do not open this file with other programs; use a safetensors checkpoint from a source that you trust"
        )

    def persistent_load(self, pid: object) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
            raise pickle.UnpicklingError("a storage is described in an unknown way")
        if len(pid) > 5 and pid[5] is not None:
            raise UnsupportedCheckpointError(
                f"{self._file}: storages that are views of others; save it again with torch"
            )
        storage = _Storage(str(pid[2]), pid[1].dtype, int(pid[4]))
        return self._storages.setdefault(storage.key, storage)
