"""What is written comes back, room is taken at once, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.errors import DiskSpaceError
from headrace.storage.aligned import PAGE_BYTES, AlignedBuffer
from headrace.storage.folders import DiskTier
from headrace.storage.scratch_file import Piece, ScratchFile


def scratch(folder: Path, num_bytes: int = 16 * PAGE_BYTES, *, is_aligned: bool = True) -> ScratchFile:
    return ScratchFile(DiskTier(folder=folder), what="tests", num_bytes=num_bytes, is_aligned=is_aligned)


def test_what_was_written_in_parts_comes_back_in_other_parts(tmp_path: Path) -> None:
    with scratch(tmp_path) as file, AlignedBuffer(4 * PAGE_BYTES) as source, AlignedBuffer(4 * PAGE_BYTES) as target:
        source.bytes[:] = os.urandom(4 * PAGE_BYTES)
        pages = [source.bytes[start : start + PAGE_BYTES] for start in range(0, 4 * PAGE_BYTES, PAGE_BYTES)]
        whole = Piece(offset=3 * PAGE_BYTES, views=[pages[2], pages[0]])
        rest = Piece(offset=9 * PAGE_BYTES, views=[pages[1], pages[3]])
        file.write("w", [whole, rest]).wait()
        file.read("r", [Piece(offset=3 * PAGE_BYTES, views=[target.bytes[: 2 * PAGE_BYTES]])]).wait()
        file.read("r", [Piece(offset=9 * PAGE_BYTES, views=[target.bytes[2 * PAGE_BYTES :]])]).wait()
        assert bytes(target.bytes) == b"".join(bytes(pages[index]) for index in (2, 0, 1, 3))
        del pages, whole, rest


def test_unaligned_pieces_go_through_the_page_cache(tmp_path: Path) -> None:
    with scratch(tmp_path, is_aligned=False) as file:
        memory = bytearray(b"some bytes")
        file.write("w", [Piece(offset=77, views=[memoryview(memory)])]).wait()
        back = bytearray(10)
        file.read("r", [Piece(offset=77, views=[memoryview(back)])]).wait()
        assert back == b"some bytes"


def test_the_file_has_no_name_and_its_threads_end(tmp_path: Path) -> None:
    before = threading.active_count()
    with scratch(tmp_path):
        assert not list(tmp_path.iterdir())
    assert threading.active_count() == before


def test_a_size_that_the_limit_does_not_allow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskSpaceError, match="tests needs"):
        ScratchFile(DiskTier(folder=tmp_path, limit_bytes=10), what="tests", num_bytes=11, is_aligned=True)


def test_a_full_disk_is_found_when_the_room_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskSpaceError, match=r"cannot take 64.0 KiB for tests: No space left on device"):
        scratch(tmp_path)


@pytest.mark.parametrize("move", ["pwritev", "preadv"])
def test_a_fault_of_the_disk_is_raised_by_the_transfer(
    move: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, move, broken)
    with scratch(tmp_path) as file, AlignedBuffer(PAGE_BYTES) as memory:
        begin = file.write if move == "pwritev" else file.read
        transfer = begin("layer 3", [Piece(offset=0, views=[memory.bytes])])
        with pytest.raises(DiskSpaceError, match=r"layer 3: the file for tests in .* failed: Input/output error"):
            transfer.wait()


def test_a_disk_that_refuses_direct_access_is_used_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.pwritev, []

    def picky(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        if not refused:
            refused.append(offset)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, views, offset)

    monkeypatch.setattr(os, "pwritev", picky)
    with scratch(tmp_path) as file, AlignedBuffer(PAGE_BYTES) as memory:
        if not file._is_direct:
            pytest.skip("this file system has no direct access")
        memory.bytes[:4] = b"four"
        file.write("w", [Piece(offset=0, views=[memory.bytes])]).wait()
        memory.bytes[:4] = b"    "
        file.read("r", [Piece(offset=0, views=[memory.bytes])]).wait()
        assert bytes(memory.bytes[:4]) == b"four" and refused
