"""Where the KV of layers is that do not keep it on the device: in host memory, or in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from headrace.storage.aligned import AlignedBuffer
from headrace.storage.scratch_file import Piece, ScratchFile
from headrace.storage.simulated_device import SimulatedLink, poison
from headrace.storage.transfer import Transfer


class KVStore(Protocol):
    """Bytes by their offset, brought to the memory of pieces and back."""

    def read(self, what: str, pieces: Sequence[Piece]) -> Transfer:
        """Begins to fill the memory of all pieces."""

    def write(self, what: str, pieces: Sequence[Piece]) -> Transfer:
        """Begins to store the memory of all pieces, which must not change before the transfer is complete."""

    def close(self) -> None:
        """Gives memory and disk back; a second call does nothing."""


class HostStore:
    """Host memory behind a device's link. Pages that are not used take none."""

    def __init__(self, link: SimulatedLink, num_bytes: int) -> None:
        self._link = link
        self._memory = AlignedBuffer(num_bytes)

    def read(self, what: str, pieces: Sequence[Piece]) -> Transfer:
        return self._link.upload(what, [(view, own) for view, own in self._pairs(pieces)])

    def write(self, what: str, pieces: Sequence[Piece]) -> Transfer:
        return self._link.download(what, [(own, view) for view, own in self._pairs(pieces)])

    def close(self) -> None:
        self._memory.close()

    def _pairs(self, pieces: Sequence[Piece]) -> Iterator[tuple[memoryview, memoryview]]:
        for piece in pieces:
            offset = piece.offset
            for view in piece.views:
                yield view, self._memory.bytes[offset : offset + len(view)]
                offset += len(view)


class FileBehindLink:
    """A file whose bytes pass a device's link, too: what is on its way holds NaN."""

    def __init__(self, file: ScratchFile) -> None:
        self._file = file

    def read(self, what: str, pieces: Sequence[Piece]) -> Transfer:
        for piece in pieces:
            for view in piece.views:
                poison(view)
        return self._file.read(what, pieces)

    def write(self, what: str, pieces: Sequence[Piece]) -> Transfer:
        return self._file.write(what, pieces)

    def close(self) -> None:
        self._file.close()
