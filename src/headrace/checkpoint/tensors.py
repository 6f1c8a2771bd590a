"""A tensor of a checkpoint as plain data: which bytes of which file, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

# Names are torch's own (`getattr(torch, name)`), so that this module needs no torch.
DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
}
CONVERTIBLE_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """A tensor that lies in bytes `[offset, offset + num_bytes)` of `file`.

    Attributes:
        name: the tensor's name in the checkpoint.
        dtype: one of `DTYPE_BYTES`.
        shape: the tensor's own shape.
        strides: in elements, for the rare tensor of a `.bin` that is not stored row by row; None for all others.
            `num_bytes` then spans from its first to its last element.
    """

    name: str
    file: Path
    offset: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPE_BYTES[self.dtype]


def natural_key(name: str) -> tuple[tuple[int, str, int], ...]:
    """Sort key that puts `experts.2` before `experts.10`: the order in which transformers stacks tensors."""
    parts = []
    for part in name.split("."):
        text = part.rstrip("0123456789")
        digits = part[len(text) :]
        parts.append((1 if text else 0, text, int(digits) if digits else -1))
    return tuple(parts)
