"""Lays out a safetensors file before it is written, so that it is known where each tensor will lie. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from headrace.checkpoint.tensors import DTYPE_BYTES, TensorEntry

_DTYPE_CODES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
}
WRITABLE_DTYPES = frozenset(_DTYPE_CODES)
_ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorShape:
    """A tensor that is to be written: its name, one of `WRITABLE_DTYPES`, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def header_bytes(tensors: Iterable[TensorShape], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns what a file of `tensors`, one after another, begins with; the tensors' bytes follow it directly."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _DTYPE_CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (begin, end),
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def planned_entries(file: Path, tensors: Iterable[TensorShape]) -> list[TensorEntry]:
    """Returns where each of `tensors` will lie in `file`, which need not be there yet."""
    tensors = list(tensors)
    entries, offset = [], len(header_bytes(tensors))
    for tensor in tensors:
        entries.append(
            TensorEntry(
                name=tensor.name,
                file=file,
                offset=offset,
                num_bytes=tensor.num_bytes,
                dtype=tensor.dtype,
                shape=tensor.shape,
            )
        )
        offset += tensor.num_bytes
    return entries
