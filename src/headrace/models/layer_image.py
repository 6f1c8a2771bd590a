"""A layer image: which ranges of the checkpoint's own files make up a layer in memory, and where its tensors lie there.

Plain data and integer arithmetic. Tensors that lie in one piece in a file are read where they are used, with whatever
lies between them; the pieces of merged tensors (experts) are gathered into place. What a checkpoint holds in another
form (dtype, transposed, interleaved) has no image until a copy of it was built (`image_cache`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from headrace.checkpoint.gather import Gather, Run
from headrace.checkpoint.tensors import DTYPE_BYTES
from headrace.models.weight_map import ParameterSource
from headrace.storage.aligned import PAGE_BYTES, pages_above
from headrace.storage.disk_reader import FileRange
from headrace.units import KIB

_LARGEST_GAP = 64 * KIB
"""Reading past this much that nobody wants costs less than another read."""
_SMALLEST_RUN = 64 * KIB
"""Tensors in smaller pieces than this are built once rather than gathered each time."""
_ALIGNMENT = 64
_DEVICE_ALIGNMENT = 256
"""What devices' own allocators give, and their fastest kernels ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTensor:
    """A parameter that lies `offset` bytes behind the start of an image, row by row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLayout:
    """Where tensors lie in memory of `num_bytes`."""

    num_bytes: int
    tensors: tuple[ImageTensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerImage:
    """What to read into a buffer of `num_bytes`, whose first byte lies at a page border, and what it then holds.

    Attributes:
        what: for messages and traces.
    """

    what: str
    num_bytes: int
    ranges: tuple[FileRange, ...]
    tensors: tuple[ImageTensor, ...]

    @property
    def read_bytes(self) -> int:
        """Bytes that one reading of the image takes from the disk, but for the rest of pages at the ends."""
        return sum(part.num_bytes for part in self.ranges)

    @property
    def layout(self) -> TensorLayout:
        """Where its tensors lie once it was read."""
        return TensorLayout(num_bytes=self.num_bytes, tensors=self.tensors)


def aligned_layout(image: LayerImage) -> TensorLayout:
    """Places an image's tensors for a device: one behind the other, without what lies between them in the files."""
    tensors, end = [], 0
    for tensor in image.tensors:
        tensors.append(replace(tensor, offset=end))
        end += -(-tensor.num_bytes // _DEVICE_ALIGNMENT) * _DEVICE_ALIGNMENT
    return TensorLayout(num_bytes=end, tensors=tuple(tensors))


def can_be_read(source: ParameterSource) -> bool:
    """Whether a parameter can be had from the checkpoint's own bytes, in pieces that are worth reading one by one."""
    content = source.content
    if not isinstance(content, Gather):
        return False
    if any(piece.entry.dtype != source.dtype or piece.entry.strides is not None for piece in content.pieces):
        return False
    num_runs = max(1, source.num_bytes // _SMALLEST_RUN)
    return all(index < num_runs for index, _ in enumerate(content.runs()))


def layer_image(what: str, sources: Iterable[ParameterSource]) -> LayerImage:
    """Lays out parameters, all of which `can_be_read`."""
    whole: list[tuple[ParameterSource, Run]] = []
    pieces: list[tuple[ParameterSource, tuple[Run, ...]]] = []
    for source in sources:
        assert isinstance(source.content, Gather), f"{source.name} has to be built first"
        runs = tuple(source.content.runs())
        if len(runs) == 1 and runs[0].file_offset % runs[0].entry.itemsize == 0:
            whole.append((source, runs[0]))
        else:
            pieces.append((source, runs))
    direct = _direct_ranges(run for _, run in whole)
    tensors = [_inside(source, run, direct) for source, run in whole]
    scattered: list[FileRange] = []
    end = max((pages_above(range_.target + range_.num_bytes) for range_ in direct), default=0)
    for source, runs in pieces:
        tensors.append(ImageTensor(name=source.name, dtype=source.dtype, shape=source.shape, offset=end))
        scattered += [_scattered(run, end) for run in runs]
        end = -(-(end + source.num_bytes) // _ALIGNMENT) * _ALIGNMENT
    return LayerImage(what=what, num_bytes=pages_above(end), ranges=(*direct, *scattered), tensors=tuple(tensors))


def expert_images(layer: int, sources: Sequence[ParameterSource]) -> tuple[LayerImage, ...]:
    """Lays out the merged parameters of a layer's experts, each (number of experts, ...), as one image per expert."""
    return tuple(
        layer_image(f"expert {index} of layer {layer}", [_item(source, index) for source in sources])
        for index in range(sources[0].shape[0])
    )


def row_images(what: str, sources: Sequence[ParameterSource], max_bytes: int) -> list[LayerImage]:
    """Lays out parameters of equally many rows as several images of about equally many rows and at most `max_bytes`.

    Meant for an output head, whose rows are columns of the result. Each source lies in one piece in its file.
    """
    num_rows = sources[0].shape[0]
    row_bytes = sum(source.num_bytes for source in sources) // num_rows
    rows_each = max(1, (max_bytes - 2 * len(sources) * PAGE_BYTES) // row_bytes)
    num_images = -(-num_rows // rows_each)
    borders = [num_rows * index // num_images for index in range(num_images + 1)]
    return [
        layer_image(f"{what} {index + 1}/{num_images}", [_rows(source, first, last) for source in sources])
        for index, (first, last) in enumerate(pairwise(borders))
    ]


def _item(source: ParameterSource, index: int) -> ParameterSource:
    assert isinstance(source.content, Gather), f"{source.name} has to be built first"
    return replace(source, shape=source.shape[1:], content=source.content.item(index))


def _rows(source: ParameterSource, first: int, last: int) -> ParameterSource:
    assert isinstance(source.content, Gather), f"{source.name} has to be built first"
    return replace(source, shape=(last - first, *source.shape[1:]), content=source.content.rows(first, last))


def _direct_ranges(runs: Iterable[Run]) -> list[FileRange]:
    """Joins neighbours in a file; each range begins as far behind a page border in memory as in its file."""
    joined: list[FileRange] = []
    for run in sorted(runs, key=lambda run: (str(run.entry.file), run.file_offset)):
        first, end = run.file_offset, run.file_offset + run.num_elements * run.entry.itemsize
        last = joined[-1] if joined else None
        if last is not None and last.file == run.entry.file and first <= last.offset + last.num_bytes + _LARGEST_GAP:
            joined[-1] = replace(last, num_bytes=max(end, last.offset + last.num_bytes) - last.offset)
            continue
        free = 0 if last is None else pages_above(last.target + last.num_bytes)
        joined.append(
            FileRange(
                file=run.entry.file,
                offset=first,
                num_bytes=end - first,
                target=free + first % PAGE_BYTES,
                direct=True,
            )
        )
    return joined


def _inside(source: ParameterSource, run: Run, ranges: Sequence[FileRange]) -> ImageTensor:
    around = next(
        range_
        for range_ in ranges
        if range_.file == run.entry.file and range_.offset <= run.file_offset < range_.offset + range_.num_bytes
    )
    offset = around.target + run.file_offset - around.offset
    return ImageTensor(name=source.name, dtype=source.dtype, shape=source.shape, offset=offset)


def _scattered(run: Run, start: int) -> FileRange:
    itemsize = DTYPE_BYTES[run.entry.dtype]
    return FileRange(
        file=run.entry.file,
        offset=run.file_offset,
        num_bytes=run.num_elements * itemsize,
        target=start + run.target_offset * itemsize,
        direct=False,
    )
