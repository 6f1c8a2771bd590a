"""Finds the tensors of a torch `.bin` file as byte ranges, without torch and without running the pickle's code.

Two layouts, both a pickle of `name -> tensor` whose storages lie elsewhere in the file:

* since torch 1.6 a zip archive: `<root>/data.pkl`, and each storage uncompressed in `<root>/data/<key>`;
* before: magic number, protocol and machine as pickles, the pickle of tensors, the list of storage keys, and then each
  storage as its length in elements (8 bytes) and its data.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import reprlib
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Protocol

from headrace.checkpoint.files import DOWNLOAD_AGAIN, describe_wrong_start, open_plain
from headrace.checkpoint.tensors import DTYPE_BYTES, TensorEntry
from headrace.errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError, one_line
from headrace.units import format_bytes

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
_MAX_PICKLE_BYTES = 100_000_000
_MAX_DIMENSIONS = 64
_MAX_SIZE = 2**60
# What a damaged pickle or archive raises is documented in part; none of it is more than "damaged" to the user.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)


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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the data of a storage lies in the file."""

    offset: int
    num_bytes: int


def read_torch_bin(file: Path) -> list[TensorEntry]:
    """Returns the tensors of one `.bin` file.

    Raises:
        CheckpointNotFoundError: there is no such file.
        UnsafeCheckpointError: the pickle names anything but tensors and plain containers.
        CorruptCheckpointError: truncated, or not such a file at all.
        UnsupportedCheckpointError: a tensor of a kind that this version does not read.
    """
    with open_plain(file) as stream:
        try:
            start = stream.read(64)
            stream.seek(0)
            if wrong := describe_wrong_start(start):
                raise CorruptCheckpointError(f"{file}: not a torch file; {wrong}")
            if start.startswith(b"PK\x03\x04"):
                tensors, places = _read_zip(file, stream)
            else:
                tensors, places = _read_legacy(file, stream)
            file_bytes = stream.seek(0, io.SEEK_END)
        except (*_DAMAGE, OSError) as error:
            raise CorruptCheckpointError(
                f"{file}: truncated or not a torch file ({one_line(error)}); {DOWNLOAD_AGAIN}"
            ) from error
    return [_entry(file, name, tensor, places, file_bytes) for name, tensor in tensors.items()]


def _read_zip(file: Path, stream: IO[bytes]) -> tuple[Mapping[str, _Tensor], Mapping[str, _Place]]:
    archive = zipfile.ZipFile(stream)
    found = next((info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"), None)
    if found is None:
        raise zipfile.BadZipFile("no data.pkl in it")
    root = found.filename.removesuffix("data.pkl")
    tensors = _unpickle(file, io.BytesIO(_record(archive, found)))
    byte_order = next((info for info in archive.infolist() if info.filename == root + "byteorder"), None)
    if byte_order is not None and _record(archive, byte_order) != b"little":
        raise UnsupportedCheckpointError(f"{file}: written on a big-endian machine; use a safetensors checkpoint")
    records = [info for info in archive.infolist() if info.filename.startswith(root + "data/")]
    return tensors, {info.filename.removeprefix(root + "data/"): _place(file, stream, info) for info in records}


def _record(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of a small record."""
    if info.file_size > _MAX_PICKLE_BYTES:
        raise zipfile.BadZipFile(f"{info.filename} takes {format_bytes(info.file_size)} when it is unpacked")
    # Room for all of it would be made before the first byte is read.
    if info.header_offset + info.compress_size > archive.start_dir:
        raise zipfile.BadZipFile(f"{info.filename} takes {format_bytes(info.compress_size)}, more than the file has")
    return archive.read(info)


def _place(file: Path, stream: IO[bytes], info: zipfile.ZipInfo) -> _Place:
    """The place of a record's data: behind its local header, whose padding the archive's directory does not know."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise UnsupportedCheckpointError(f"{file}: {info.filename} is compressed; save the checkpoint again with torch")
    stream.seek(info.header_offset)
    header = stream.read(30)
    if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
        raise CorruptCheckpointError(f"{file}: no record where {info.filename} should be; {DOWNLOAD_AGAIN}")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    offset = info.header_offset + 30 + int(name_bytes) + int(extra_bytes)
    return _Place(offset, info.file_size)


def _read_legacy(file: Path, stream: IO[bytes]) -> tuple[Mapping[str, _Tensor], Mapping[str, _Place]]:
    storages: dict[str, _Storage] = {}
    pickles = _Pickles(stream)
    magic = _load(file, pickles)
    if magic != _LEGACY_MAGIC:
        raise CorruptCheckpointError(f"{file}: not a torch file; {DOWNLOAD_AGAIN}")
    _load(file, pickles)
    machine = _load(file, pickles)
    if not (isinstance(machine, dict) and machine.get("little_endian") is True):
        raise UnsupportedCheckpointError(f"{file}: written on a big-endian machine; use a safetensors checkpoint")
    tensors = _unpickle(file, pickles, storages)
    keys = _load(file, pickles)
    places: dict[str, _Place] = {}
    position = stream.tell()
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(key)
        stream.seek(position)
        if storage is None or stream.read(8) != struct.pack("<q", storage.num_elements):
            raise CorruptCheckpointError(f"{file}: storage {key!r} is not where it should be; {DOWNLOAD_AGAIN}")
        places[key] = _Place(position + 8, storage.num_elements * DTYPE_BYTES[storage.dtype])
        position += 8 + places[key].num_bytes
    return tensors, places


def _load(file: Path, stream: _Readable, storages: dict[str, _Storage] | None = None) -> object:
    """Loads the pickle that begins here, once none of its numbers asks for more memory than it has bytes."""
    start = stream.tell()
    # It takes whatever has read, readline and tell.
    for opcode, argument, position in pickletools.genops(stream):  # type: ignore[arg-type]
        # The unpickler makes room for so many values at once, however few there are.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > (position or 0):
            raise pickle.UnpicklingError(f"it numbers a value {argument} at byte {position}")
    stream.seek(start)
    return _RestrictedUnpickler(file, stream, storages).load()


def _unpickle(file: Path, stream: _Readable, storages: dict[str, _Storage] | None = None) -> Mapping[str, _Tensor]:
    try:
        value = _load(file, stream, storages)
    except _DAMAGE as error:
        raise CorruptCheckpointError(f"{file}: its pickle is damaged ({one_line(error)}); {DOWNLOAD_AGAIN}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(
            f"{file}: holds a {type(value).__name__}; expected tensors by name; "
            "save the model's state_dict alone, or use a safetensors checkpoint"
        )
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise CorruptCheckpointError(
                f"{file}: {reprlib.repr(name)} is a {type(tensor).__name__}; expected a tensor; "
                "save the model's state_dict alone, or use a safetensors checkpoint"
            )
    return value


def _entry(file: Path, name: str, tensor: _Tensor, places: Mapping[str, _Place], file_bytes: int) -> TensorEntry:
    storage = tensor.storage
    itemsize = DTYPE_BYTES[storage.dtype]
    contiguous = tensor.strides == _row_major(tensor.shape) or prod(tensor.shape) <= 1
    span = _span(tensor.shape, tensor.strides)
    if storage.key not in places or tensor.offset < 0 or tensor.offset + span > storage.num_elements:
        raise CorruptCheckpointError(f"{file}: tensor {name} reaches beyond its storage; {DOWNLOAD_AGAIN}")
    place = places[storage.key]
    offset = place.offset + tensor.offset * itemsize
    if (tensor.offset + span) * itemsize > place.num_bytes:
        raise CorruptCheckpointError(
            f"{file}: the storage of tensor {name} holds {place.num_bytes} bytes, but the tensor takes them up to "
            f"{(tensor.offset + span) * itemsize}; {DOWNLOAD_AGAIN}"
        )
    if offset + span * itemsize > file_bytes:
        raise CorruptCheckpointError(
            f"{file}: truncated: tensor {name} ends at byte {offset + span * itemsize}, the file has {file_bytes}; "
            f"{DOWNLOAD_AGAIN}"
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
        and len(shape) == len(strides) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size <= _MAX_SIZE for size in (*shape, *strides))
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


class _Readable(Protocol):
    """What an unpickler needs of a stream, and `_load` to begin again."""

    def read(self, num_bytes: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...
    def seek(self, position: int, /) -> int: ...


class _Pickles:
    """The pickles at the start of a file of any size: no single value of them is as large as weights are."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._stop = os.fstat(stream.fileno()).st_size
        self.tell, self.seek = stream.tell, stream.seek

    def read(self, num_bytes: int, /) -> bytes:
        if num_bytes > _MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError(f"it holds a value of {format_bytes(num_bytes)}")
        return self._stream.read(min(num_bytes, self._stop - self.tell()))  # who reads makes room for all at once

    def readline(self) -> bytes:
        return self._stream.readline(_MAX_PICKLE_BYTES)


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows tensors, their storages and plain containers. Every other global is refused before it is looked up."""

    def __init__(self, file: Path, stream: _Readable, storages: dict[str, _Storage] | None = None) -> None:
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
