"""What a calibration found out, and its form as JSON. Free of torch."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from headrace.planner.machine import MachineIdentity

_FORMAT = 1
"""Raised when a field changes its meaning."""
STANDARD_SHAPE = (2048, 2048)
"""Output and input width of the matrix that every calibration measures, whatever the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskRead:
    """Sequential reads by `num_threads` threads, each of `block_bytes` at a time."""

    num_threads: int
    block_bytes: int
    bytes_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixRate:
    """A product of `num_tokens` tokens with a weight of (rows, columns); a product of one token is bound by memory."""

    rows: int
    columns: int
    dtype: str
    num_tokens: int
    operations_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionRate:
    """Attention of `num_rows` rows, `tokens_per_row` queries each, over `context_tokens` keys in all per row.

    Attributes:
        dtype: of keys and values: a type of torch's, or a codec.
        operations_per_second: of those that the causal mask leaves.
        kv_bytes_per_second: keys and values of all rows, read once.
    """

    kind: Literal["decode", "prefill"]
    dtype: str
    num_rows: int
    tokens_per_row: int
    context_tokens: int
    num_heads: int
    num_kv_heads: int
    key_width: int
    value_width: int
    operations_per_second: float
    kv_bytes_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Rates of one machine and one disk.

    Attributes:
        date: when, in UTC, ISO 8601.
        folder: where the disk was measured; the results hold for all of the disk `disk_id`.
        model: the folder of the model whose shapes were measured beside the standard one, if there was one.
        seconds: that measuring took.
        direct_reads: whether the disk was read past the page cache.
        memory_bytes_per_second: read by one operation.
        copy_bytes_per_second: copied within memory; each byte is read and written.
    """

    date: str
    headrace: str
    machine: MachineIdentity
    disk_id: int
    folder: str
    model: str | None
    seconds: float
    direct_reads: bool
    disk_reads: tuple[DiskRead, ...]
    disk_write_bytes_per_second: float
    memory_bytes_per_second: float
    copy_bytes_per_second: float
    matrix: tuple[MatrixRate, ...]
    attention: tuple[AttentionRate, ...]

    def disk_rate(self, *, num_threads: int, block_bytes: int) -> float | None:
        """Returns the bytes per second of reads of just this kind; None if they were not measured."""
        found = (
            read.bytes_per_second
            for read in self.disk_reads
            if (read.num_threads, read.block_bytes) == (num_threads, block_bytes)
        )
        return next(found, None)

    def matrix_rate(self, *, dtype: str, num_tokens: int, shape: tuple[int, int] = STANDARD_SHAPE) -> float | None:
        """Returns the operations per second of a product of just this kind; None if it was not measured."""
        found = (
            rate.operations_per_second
            for rate in self.matrix
            if (rate.rows, rate.columns, rate.dtype, rate.num_tokens) == (*shape, dtype, num_tokens)
        )
        return next(found, None)

    def to_json(self) -> str:
        """Returns all of it as JSON text."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Calibration:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: the text is anything else; the message says where.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise ValueError(f"not a calibration of format {_FORMAT}")
        return _read_class(Calibration, data, "calibration")


_Class = TypeVar("_Class")


def _read_class(kind: type[_Class], data: object, place: str) -> _Class:
    hints = typing.get_type_hints(kind)
    if not isinstance(data, dict) or set(data) != set(hints):
        raise ValueError(f"{place} does not have the fields {', '.join(hints)}")
    return kind(**{name: _read_value(hint, data[name], f"{place}.{name}") for name, hint in hints.items()})


def _read_value(hint: Any, value: object, place: str) -> object:
    """Checks one value of parsed JSON against a field's type, and returns it in that type."""
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{place} is not a list")
        return tuple(_read_value(typing.get_args(hint)[0], item, f"{place}[]") for item in value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read_class(hint, value, place)
    if typing.get_origin(hint) is Literal:
        is_right = value in typing.get_args(hint)
    elif hint is float:  # every one is a rate or a duration
        is_right = type(value) in (int, float) and 0 < typing.cast(float, value) < math.inf
    else:
        is_right = type(value) in (typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,))
    if not is_right:
        raise ValueError(f"{place} is {value!r}")
    return value
