"""Loads a skeleton's parameters group by group, each read straight into the memory that it is to live in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

import torch
from torch import nn

from headrace.checkpoint.dummy import fill_random
from headrace.checkpoint.gather import Gather, Piece, Run
from headrace.checkpoint.packed_tensors import PackedEntry
from headrace.checkpoint.reader import RangeReader
from headrace.checkpoint.tensors import TensorEntry
from headrace.compression.stored_codes import pack_stored
from headrace.compression.weight_codecs import PART_OUTPUTS
from headrace.errors import WeightMismatchError
from headrace.models.parameter_places import ParameterPlaces
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_conversion import Conversion
from headrace.models.weight_map import Group, Packed, ParameterSource, RandomFill, Stored, WeightMap
from headrace.storage.aligned import HUGE_PAGE_BYTES, AlignedBuffer

_STAGING_BYTES = 16 * 1024**2
_PACKED_PARTS = 2
"""Of a weight, packed at a time: what packing takes beside it is some ten times as large as these in fp32."""


class Allocate(Protocol):
    """Makes an uninitialised contiguous tensor; charges whoever pays for it, or raises BudgetError."""

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor: ...


def allocate_on(device: torch.device) -> Allocate:
    """Returns an `Allocate` that makes plain tensors on `device`, in huge pages of a CPU's, and charges nobody."""

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        num_bytes = math.prod(shape) * dtype.itemsize
        if device.type == "cpu" and num_bytes >= HUGE_PAGE_BYTES:
            return AlignedBuffer(num_bytes).tensor(0, shape, dtype)
        return torch.empty(shape, dtype=dtype, device=device)

    return allocate


class WeightLoader:
    """Brings the parameters of a skeleton into memory and takes them out again, a group at a time.

    Parameters in host memory of the checkpoint's own dtype are read in place; for other dtypes and devices the bytes
    pass through one staging buffer of 16 MiB. A context manager: `close` closes the files and drops the staging buffer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        weight_map: WeightMap,
        *,
        places: ParameterPlaces | None = None,
        allocate: Allocate | None = None,
        allocate_staging: Allocate | None = None,
    ) -> None:
        host = allocate_on(torch.device("cpu"))
        self._model = model
        self._map = weight_map
        self._places = places or ParameterPlaces(model, weight_map)
        self._allocate = allocate or host
        self._allocate_staging = allocate_staging or host
        self._reader = RangeReader()
        self._staging: torch.Tensor | None = None

    def load(self, group: Group) -> int:
        """Loads one group and returns its bytes. On an error the model keeps what it had.

        Raises:
            CheckpointError: a file went missing or ends too early.
            BudgetError: the allocator refuses.
        """
        loaded: dict[str, torch.Tensor] = {}
        converted: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for source in sorted(self._map.in_group(group), key=_file_order):
                tensor = self._allocate(source.shape, getattr(torch, source.dtype))
                self._fill_from(source, tensor, converted)
                loaded[source.name] = tensor
        for name, tensor in loaded.items():
            self._places.put(name, tensor)
        return sum(source.num_bytes for source in self._map.in_group(group))

    def load_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Loads every group, in the order of a forward pass.

        Args:
            progress: called after each group with the bytes loaded so far and in all.
        """
        done = 0
        for group in self._map.groups:
            done += self.load(group)
            if progress is not None:
                progress(done, self._map.num_bytes)

    def release(self, group: Group) -> None:
        """Puts the group's parameters back on the meta device, so that nothing in the model holds their memory."""
        for source in self._map.in_group(group):
            self._places.take_out(source.name, source.shape, source.dtype)

    def close(self) -> None:
        """Closes the checkpoint's files. What is loaded stays loaded."""
        self._reader.close()
        self._staging = None

    def __enter__(self) -> WeightLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill_from(
        self, source: ParameterSource, tensor: torch.Tensor, converted: dict[int, dict[str, torch.Tensor]]
    ) -> None:
        match source.content:
            case Gather() as gather:
                self._fill(tensor, gather)
            case RandomFill(seed=seed):
                fill_random(tensor, source.name, seed)
            case Packed() as packed:
                self._fill_packed(tensor, packed, converted)
            case Stored() as stored:
                self._fill_stored(tensor, stored)
            case Conversion() as conversion:
                self._fill_converted(tensor, source.name, conversion, converted)

    def _fill(self, tensor: torch.Tensor, gather: Gather) -> None:
        for piece in gather.pieces:
            if piece.entry.strides is not None:
                tensor.copy_(self._read(piece.entry))
            else:
                for run in piece.runs(gather.shape):
                    self._fill_run(tensor, run)

    def _fill_run(self, tensor: torch.Tensor, run: Run) -> None:
        flat = tensor.view(-1)[run.target_offset : run.target_offset + run.num_elements]
        source_dtype: torch.dtype = getattr(torch, run.entry.dtype)
        if tensor.device.type == "cpu" and tensor.dtype == source_dtype:
            self._reader.read_into(run.entry.file, run.file_offset, _bytes_of(flat))
            return
        if self._staging is None:
            self._staging = self._allocate_staging((_STAGING_BYTES,), torch.uint8)
        staged = self._staging.view(source_dtype)
        for first in range(0, run.num_elements, len(staged)):
            part = staged[: min(len(staged), run.num_elements - first)]
            self._reader.read_into(run.entry.file, run.file_offset + first * run.entry.itemsize, _bytes_of(part))
            # Not asynchronous: the next read overwrites the staging buffer.
            flat[first : first + len(part)].copy_(part)

    def _fill_packed(self, tensor: torch.Tensor, packed: Packed, converted: dict[int, dict[str, torch.Tensor]]) -> None:
        original = packed.original
        if isinstance(original.content, Stored):
            tensor.copy_(self._pack_stored(original.content))
            return
        for first, rows in self._rows_to_pack(packed, converted):
            tensor[first : first + _PACKED_PARTS] = packed.codec.encode(rows)

    def _rows_to_pack(
        self, packed: Packed, converted: dict[int, dict[str, torch.Tensor]]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields the outputs of every few parts, with the number of the first of these parts."""
        original, dtype = packed.original, getattr(torch, packed.original.dtype)
        step = _PACKED_PARTS * PART_OUTPUTS
        if packed.is_read_by_rows and isinstance(original.content, Gather):
            for first in range(0, original.shape[0], step):
                content = original.content.rows(first, min(first + step, original.shape[0]))
                rows = self._allocate_staging(content.shape, dtype)
                self._fill(rows, content)
                yield first // PART_OUTPUTS, rows
            return
        plain = self._allocate_staging(original.shape, dtype)
        self._fill_from(original, plain, converted)
        weight = plain.t() if packed.transposed else plain
        for first in range(0, len(weight), step):
            yield first // PART_OUTPUTS, weight[first : first + step]

    def _fill_stored(self, tensor: torch.Tensor, stored: Stored) -> None:
        """Unpacks a weight that something else than a linear layer computes with."""
        tensor.copy_(stored.codec.decode(self._pack_stored(stored), *tensor.shape))

    def _pack_stored(self, stored: Stored) -> torch.Tensor:
        entry = stored.entry
        zeros = None if entry.zeros is None else self._read(entry.zeros)
        return pack_stored(stored.codec, self._read(entry.codes), self._read(entry.scales), zeros)

    def _fill_converted(
        self,
        tensor: torch.Tensor,
        name: str,
        conversion: Conversion,
        converted: dict[int, dict[str, torch.Tensor]],
    ) -> None:
        """Takes a parameter from its conversion, which is run once for all parameters that it makes."""
        if id(conversion) not in converted:
            converted[id(conversion)] = conversion.run(self._model, self._read)
        value = converted[id(conversion)].pop(name)
        if value.shape != tensor.shape:
            raise WeightMismatchError(
                f"{name}: converted to shape {list(value.shape)}; expected {list(tensor.shape)}; "
                "config.json and the weights belong to different models"
            )
        tensor.copy_(value)

    def _read(self, entry: TensorEntry) -> torch.Tensor:
        """Reads one whole checkpoint tensor into host memory of its own."""
        dtype: torch.dtype = getattr(torch, entry.dtype)
        stored = self._allocate_staging((entry.num_bytes // entry.itemsize,), dtype)
        self._reader.read_into(entry.file, entry.offset, _bytes_of(stored))
        if entry.strides is not None:
            return stored.as_strided(entry.shape, entry.strides)
        return stored.view(entry.shape)


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Moves the buffers that are there (rotary tables and the like) to `device`; others come with their layer."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous one-dimensional tensor on the CPU, as writable bytes."""
    return tensor.view(torch.uint8).numpy().data


def _file_order(source: ParameterSource) -> tuple[str, int]:
    """Reads a group in the order of the file, which is what disks and their read-ahead like."""
    content = source.content.original.content if isinstance(source.content, Packed) else source.content
    match content:
        case Gather(pieces=(Piece(entry=entry), *_)) | Stored(entry=PackedEntry(codes=entry)):
            return (str(entry.file), entry.offset)
        case _:
            return ("", 0)
