"""Where the KV of layers is that do not keep it on the device: in host memory, or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from headrace.attention.ragged import KVPages
from headrace.kv_cache.slab import BlockRecord, Slab, Span
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.link import Link, Part
from headrace.storage.scratch_file import Piece, ScratchFile
from headrace.storage.transfer import Transfer


@dataclass(frozen=True, kw_only=True, slots=True)
class SlabPiece:
    """Consecutive bytes of a store from `offset` on, and the parts of a slab that they fill or come from, in order."""

    offset: int
    spans: Sequence[Span]


class KVStore(Protocol):
    """Bytes by their offset, brought to slabs and back."""

    def read(self, what: str, slab: Slab, pieces: Sequence[SlabPiece]) -> Transfer:
        """Begins to fill all pieces of `slab`."""

    def write(self, what: str, slab: Slab, pieces: Sequence[SlabPiece]) -> Transfer:
        """Begins to store all pieces of `slab`, which must not change before the transfer is complete."""

    def pages(self, offset: int, num_blocks: int, record: BlockRecord) -> KVPages | None:
        """Returns the records from `offset` on as pages that can be attended over where they are; None if they cannot.

        Whoever uses them sees to it that no transfer does.
        """

    def close(self) -> None:
        """Gives memory and disk back; a second call does nothing."""


class FileStore:
    """A file right below memory."""

    def __init__(self, file: ScratchFile) -> None:
        self._file = file

    def read(self, what: str, slab: Slab, pieces: Sequence[SlabPiece]) -> Transfer:
        return self._file.read(what, _file_pieces(_own_memory(slab), pieces))

    def write(self, what: str, slab: Slab, pieces: Sequence[SlabPiece]) -> Transfer:
        return self._file.write(what, _file_pieces(_own_memory(slab), pieces))

    def pages(self, offset: int, num_blocks: int, record: BlockRecord) -> None:
        return None

    def close(self) -> None:
        self._file.close()


class HostStore:
    """Host memory behind a device's link."""

    def __init__(self, link: Link, num_bytes: int) -> None:
        self._link = link
        self._memory = link.host_memory(num_bytes)

    def read(self, what: str, slab: Slab, pieces: Sequence[SlabPiece]) -> Transfer:
        return self._link.upload(what, slab.buffer, self._parts(pieces))

    def write(self, what: str, slab: Slab, pieces: Sequence[SlabPiece]) -> Transfer:
        return self._link.download(what, slab.buffer, self._parts(pieces))

    def pages(self, offset: int, num_blocks: int, record: BlockRecord) -> KVPages:
        width = record.num_bytes // record.element.itemsize
        return record.pages_of(self._memory.tensor(offset, (num_blocks, width), record.element))

    def close(self) -> None:
        self._memory.close()

    def _parts(self, pieces: Sequence[SlabPiece]) -> list[Part]:
        parts = []
        for piece in pieces:
            offset = piece.offset
            for start, end in piece.spans:
                parts.append((start, self._memory.bytes[offset : offset + end - start]))
                offset += end - start
        return parts


class FileBehindLink:
    """A file below the host of a device. What is on its way passes a mirror of the slab in the host's memory.

    A slab's mirror is in one transfer's use at a time, since the slab is: what comes next for the slab waits for it.
    """

    def __init__(self, file: ScratchFile, link: Link) -> None:
        """A mirror, as large as the slab, is taken when a slab is first seen."""
        self._file = file
        self._link = link
        self._mirrors: dict[Slab, AlignedBuffer] = {}

    def read(self, what: str, slab: Slab, pieces: Sequence[SlabPiece]) -> Transfer:
        mirror = self._mirror(slab)
        arrived = self._file.read(what, _file_pieces(mirror, pieces))
        return self._link.upload(what, slab.buffer, _mirrored(mirror, pieces), after=arrived)

    def write(self, what: str, slab: Slab, pieces: Sequence[SlabPiece]) -> Transfer:
        mirror = self._mirror(slab)
        arrived = self._link.download(what, slab.buffer, _mirrored(mirror, pieces))
        return self._file.write(what, _file_pieces(mirror, pieces), after=arrived)

    def pages(self, offset: int, num_blocks: int, record: BlockRecord) -> None:
        return None

    def close(self) -> None:
        self._file.close()
        while self._mirrors:
            self._mirrors.popitem()[1].close()

    def _mirror(self, slab: Slab) -> AlignedBuffer:
        if slab not in self._mirrors:
            self._mirrors[slab] = self._link.host_memory(slab.buffer.num_bytes)
        return self._mirrors[slab]


def _own_memory(slab: Slab) -> AlignedBuffer:
    assert isinstance(slab.buffer, AlignedBuffer), "a file fills host memory only"
    return slab.buffer


def _file_pieces(memory: AlignedBuffer, pieces: Sequence[SlabPiece]) -> list[Piece]:
    return [
        Piece(offset=piece.offset, views=[memory.bytes[start:end] for start, end in piece.spans]) for piece in pieces
    ]


def _mirrored(mirror: AlignedBuffer, pieces: Sequence[SlabPiece]) -> list[Part]:
    """The pieces at equal places in slab and mirror; neighbours go together, which files, with their order, cannot."""
    parts: list[Span] = []
    for start, end in sorted(span for piece in pieces for span in piece.spans):
        if parts and parts[-1][1] == start:
            parts[-1] = (parts[-1][0], end)
        else:
            parts.append((start, end))
    return [(start, mirror.bytes[start:end]) for start, end in parts]
