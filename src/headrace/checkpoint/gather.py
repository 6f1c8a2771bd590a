"""Where the bytes of a parameter come from: pieces of checkpoint tensors and their places in the parameter.

Plain data and integer arithmetic. A loader reads the runs of a gather straight into a parameter; a layer image is the
same list with the parameter's place in the layer added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod

from headrace.checkpoint.tensors import TensorEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """The part `[start, start + shape)` of a tensor, per dimension."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        return cls(start=(0,) * len(shape), shape=shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The part `source` of a checkpoint tensor, which fills the part `target` of a parameter in the same row order."""

    entry: TensorEntry
    source: Box
    target: Box

    def runs(self, shape: tuple[int, ...]) -> Iterator[Run]:
        """Yields the piece's contiguous runs in a parameter of `shape`. The entry must be stored row by row."""
        num_elements = prod(self.target.shape)
        if num_elements == 0:
            return
        step = gcd(_contiguous(self.source, self.entry.shape), _contiguous(self.target, shape))
        for first in range(0, num_elements, step):
            yield Run(
                entry=self.entry,
                source_offset=_offset(first, self.source, self.entry.shape),
                target_offset=_offset(first, self.target, shape),
                num_elements=step,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """`num_elements` that are contiguous in the file and in the parameter; offsets count elements from their starts."""

    entry: TensorEntry
    source_offset: int
    target_offset: int
    num_elements: int

    @property
    def file_offset(self) -> int:
        """The run's first byte in `entry.file`."""
        return self.entry.offset + self.source_offset * self.entry.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Gather:
    """A tensor of `shape` that `pieces` fill completely, each element once."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @classmethod
    def whole(cls, entry: TensorEntry) -> Gather:
        """The checkpoint tensor as it is."""
        box = Box.whole(entry.shape)
        return cls(shape=entry.shape, pieces=(Piece(entry=entry, source=box, target=box),))

    def item(self, index: int) -> Gather:
        """Returns the tensor at `index` of the first dimension; each piece fills one of these, or several in order."""
        pieces = []
        for piece in self.pieces:
            start, count = piece.target.start[0], piece.target.shape[0]
            if start <= index < start + count:
                pieces.append(_item(piece, index - start))
        return Gather(shape=self.shape[1:], pieces=tuple(pieces))

    def rows(self, first: int, last: int) -> Gather:
        """Returns rows `first` up to `last`; each piece fills whole ones, in order."""
        pieces = []
        for piece in self.pieces:
            start = piece.target.start[0]
            begin, end = max(first, start), min(last, start + piece.target.shape[0])
            if begin < end:
                pieces.append(_rows(piece, begin - start, end - begin, begin - first))
        return Gather(shape=(last - first, *self.shape[1:]), pieces=tuple(pieces))

    def runs(self) -> Iterator[Run]:
        """Yields the contiguous runs of all pieces, whose entries must be stored row by row."""
        for piece in self.pieces:
            yield from piece.runs(self.shape)


def stack(gathers: Sequence[Gather], dim: int) -> Gather:
    """`torch.stack` of gathers.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = {gather.shape for gather in gathers}
    if len(shapes) != 1:
        raise ValueError(f"cannot stack shapes {_list_shapes(shapes)}")
    (shape,) = shapes
    dim %= len(shape) + 1

    def insert(values: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*values[:dim], value, *values[dim:])

    pieces = [
        replace(piece, target=Box(start=insert(piece.target.start, index), shape=insert(piece.target.shape, 1)))
        for index, gather in enumerate(gathers)
        for piece in gather.pieces
    ]
    return Gather(shape=insert(shape, len(gathers)), pieces=tuple(pieces))


def concatenate(gathers: Sequence[Gather], dim: int) -> Gather:
    """`torch.cat` of gathers.

    Raises:
        ValueError: the shapes differ in another dimension than `dim`.
    """
    dim %= len(gathers[0].shape)

    def with_dim(values: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*values[:dim], value, *values[dim + 1 :])

    if len({with_dim(gather.shape, 0) for gather in gathers}) != 1:
        shapes = {gather.shape for gather in gathers}
        raise ValueError(f"cannot concatenate shapes {_list_shapes(shapes)} along dimension {dim}")
    pieces: list[Piece] = []
    position = 0
    for gather in gathers:
        for piece in gather.pieces:
            start = with_dim(piece.target.start, piece.target.start[dim] + position)
            pieces.append(replace(piece, target=replace(piece.target, start=start)))
        position += gather.shape[dim]
    return Gather(shape=with_dim(gathers[0].shape, position), pieces=tuple(pieces))


def _item(piece: Piece, index: int) -> Piece:
    """Number `index` of a piece's first dimension, which its target no longer has."""
    source, target = piece.source, piece.target
    if target.shape[0] > 1:
        assert source.shape == target.shape, f"{piece.entry.name} is not stored item by item"
        start = (source.start[0] + index, *source.start[1:])
        source = Box(start=start, shape=(1, *source.shape[1:]))
    return replace(piece, source=source, target=Box(start=target.start[1:], shape=target.shape[1:]))


def _rows(piece: Piece, skipped: int, count: int, place: int) -> Piece:
    """`count` rows of a piece behind the first `skipped`, to row `place` of the target."""
    source, target = piece.source, piece.target
    assert source.shape == target.shape, f"{piece.entry.name} is not stored row by row"
    shape = (count, *source.shape[1:])
    return replace(
        piece,
        source=Box(start=(source.start[0] + skipped, *source.start[1:]), shape=shape),
        target=Box(start=(place, *target.start[1:]), shape=shape),
    )


def _contiguous(box: Box, shape: tuple[int, ...]) -> int:
    """The number of elements of `box` that lie side by side in a row-major tensor of `shape`."""
    run = 1
    for size, full in zip(reversed(box.shape), reversed(shape), strict=True):
        run *= size
        if size != full:
            break
    return run


def _offset(element: int, box: Box, shape: tuple[int, ...]) -> int:
    """The place of `box`'s element number `element` in a row-major tensor of `shape`."""
    offset, stride = 0, 1
    for start, size, full in zip(reversed(box.start), reversed(box.shape), reversed(shape), strict=True):
        offset += (start + element % size) * stride
        element //= size
        stride *= full
    return offset


def _list_shapes(shapes: set[tuple[int, ...]]) -> str:
    return " and ".join(str(shape) for shape in sorted(shapes)[:4])
