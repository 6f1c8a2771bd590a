"""Ranges of files arrive where they belong, whole, or their transfer says why not."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError
from headrace.storage.aligned import PAGE_BYTES, AlignedBuffer, pages_above
from headrace.storage.disk_reader import DiskReader, FileRange

BLOCK = 4 * PAGE_BYTES


@pytest.fixture
def reader() -> Iterator[DiskReader]:
    with DiskReader(num_threads=3, block_bytes=BLOCK) as reader:
        yield reader


def make_file(path: Path, num_bytes: int) -> bytes:
    content = random.Random(num_bytes).randbytes(num_bytes)
    path.write_bytes(content)
    return content


def whole(file: Path, offset: int, num_bytes: int, target: int = 0, *, direct: bool) -> FileRange:
    return FileRange(file=file, offset=offset, num_bytes=num_bytes, target=target, direct=direct)


@pytest.mark.parametrize("offset", [0, 1, 8, PAGE_BYTES - 1, PAGE_BYTES, 3 * BLOCK + 777])
@pytest.mark.parametrize("num_bytes", [1, 4095, 4096, BLOCK, 5 * BLOCK + 123])
def test_direct_ranges_lie_as_far_behind_a_page_border_as_in_the_file(
    reader: DiskReader, tmp_path: Path, offset: int, num_bytes: int
) -> None:
    content = make_file(tmp_path / "f", offset + num_bytes + 50)
    target = PAGE_BYTES + offset % PAGE_BYTES
    with AlignedBuffer(pages_above(target + num_bytes)) as buffer:
        reader.read("f", [whole(tmp_path / "f", offset, num_bytes, target, direct=True)], buffer.bytes).wait()
        assert bytes(buffer.bytes[target : target + num_bytes]) == content[offset : offset + num_bytes]


@pytest.mark.parametrize("offset", [0, 5, PAGE_BYTES, 2 * BLOCK - 3])
@pytest.mark.parametrize("num_bytes", [1, 4096, 3 * BLOCK + 1])
def test_other_ranges_touch_nothing_but_their_own_bytes(
    reader: DiskReader, tmp_path: Path, offset: int, num_bytes: int
) -> None:
    content = make_file(tmp_path / "f", offset + num_bytes)
    with AlignedBuffer(num_bytes + 200) as buffer:
        buffer.bytes[:] = b"x" * buffer.num_bytes
        reader.read("f", [whole(tmp_path / "f", offset, num_bytes, 100, direct=False)], buffer.bytes).wait()
        assert bytes(buffer.bytes[100 : 100 + num_bytes]) == content[offset:]
        assert set(buffer.bytes[:100]) == set(buffer.bytes[100 + num_bytes :]) == {ord("x")}


def test_a_range_that_ends_with_the_file_is_read_although_its_last_page_is_not_full(
    reader: DiskReader, tmp_path: Path
) -> None:
    content = make_file(tmp_path / "f", BLOCK + 10)
    with AlignedBuffer(2 * BLOCK) as buffer:
        reader.read("f", [whole(tmp_path / "f", 0, BLOCK + 10, direct=True)], buffer.bytes).wait()
        assert bytes(buffer.bytes[: BLOCK + 10]) == content


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_neighbours_that_are_read_together_arrive_each_where_it_belongs(
    tmp_path: Path, seed: int, direct: bool
) -> None:
    random_ = random.Random(seed)
    content = make_file(tmp_path / "f", 6 * BLOCK)
    borders = [0, *sorted(random_.sample(range(1, len(content)), 30)), len(content)]
    pieces = list(pairwise(borders))
    random_.shuffle(pieces)
    with DiskReader(num_threads=1, block_bytes=BLOCK) as reader:
        buffers = [AlignedBuffer(pages_above(PAGE_BYTES + end - start)) for start, end in pieces]
        transfers = [
            reader.read(
                "f", [whole(tmp_path / "f", start, end - start, start % PAGE_BYTES, direct=direct)], buffer.bytes
            )
            for (start, end), buffer in zip(pieces, buffers, strict=True)
        ]
        for (start, end), buffer, transfer in zip(pieces, buffers, transfers, strict=True):
            transfer.wait()
            target = start % PAGE_BYTES
            assert bytes(buffer.bytes[target : target + end - start]) == content[start:end]
        assert reader.num_bytes == len(content)


def test_a_system_that_gives_less_than_was_asked_for_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def one_page(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(descriptor, [buffers[0][:PAGE_BYTES]], offset)

    monkeypatch.setattr(os, "preadv", one_page)
    test_neighbours_that_are_read_together_arrive_each_where_it_belongs(tmp_path, seed=0, direct=True)


def test_all_who_wait_for_neighbours_learn_that_the_file_ended_too_early(tmp_path: Path) -> None:
    make_file(tmp_path / "f", BLOCK)
    with DiskReader(num_threads=1, block_bytes=BLOCK) as reader, AlignedBuffer(BLOCK) as busy:
        reader.read("busy", [whole(tmp_path / "f", 0, BLOCK, direct=True)], busy.bytes)
        with AlignedBuffer(BLOCK) as buffer:
            ranges = [whole(tmp_path / "f", BLOCK - 20 + 15 * i, 15, 100 * i, direct=False) for i in range(2)]
            transfers = [reader.read("f", [range_], buffer.bytes) for range_ in ranges]
            for transfer in transfers[1:]:
                with pytest.raises(CorruptCheckpointError, match="changed while it was in use"):
                    transfer.wait()
            transfers[0].settle()


def test_many_transfers_arrive_each_with_its_own_bytes(reader: DiskReader, tmp_path: Path) -> None:
    content = make_file(tmp_path / "f", 40 * BLOCK)
    buffers = [AlignedBuffer(4 * BLOCK) for _ in range(10)]
    transfers = [
        reader.read(str(i), [whole(tmp_path / "f", 4 * i * BLOCK, 4 * BLOCK, direct=True)], buffer.bytes)
        for i, buffer in enumerate(buffers)
    ]
    for i, (transfer, buffer) in enumerate(zip(transfers, buffers, strict=True)):
        transfer.wait()
        assert transfer.is_complete
        assert bytes(buffer.bytes) == content[4 * i * BLOCK : 4 * (i + 1) * BLOCK]
        buffer.close()


def test_a_file_that_ends_too_early_fails_its_own_transfer_and_no_other(reader: DiskReader, tmp_path: Path) -> None:
    make_file(tmp_path / "short", 100)
    content = make_file(tmp_path / "good", 100)
    with AlignedBuffer(BLOCK) as buffer, AlignedBuffer(BLOCK) as other:
        bad = reader.read("bad", [whole(tmp_path / "short", 0, 101, direct=True)], buffer.bytes)
        good = reader.read("good", [whole(tmp_path / "good", 0, 100, direct=True)], other.bytes)
        with pytest.raises(CorruptCheckpointError, match="short: changed while it was in use"):
            bad.wait()
        good.wait()
        assert bytes(other.bytes[:100]) == content


def test_a_file_that_changes_while_it_is_in_use_is_noticed(reader: DiskReader, tmp_path: Path) -> None:
    make_file(tmp_path / "f", BLOCK)
    wanted = [whole(tmp_path / "f", 0, BLOCK, direct=True)]
    with AlignedBuffer(BLOCK) as buffer:
        reader.read("before", wanted, buffer.bytes).wait()
        with (tmp_path / "f").open("r+b") as stream:
            stream.write(b"changed")
        os.utime(tmp_path / "f", ns=(1, 1))
        with pytest.raises(CorruptCheckpointError, match="changed while it was in use"):
            reader.read("after", wanted, buffer.bytes).wait()


def test_a_file_that_is_deleted_while_it_is_in_use_stays_readable(reader: DiskReader, tmp_path: Path) -> None:
    content = make_file(tmp_path / "f", BLOCK)
    reader.open(tmp_path / "f")
    (tmp_path / "f").unlink()
    with AlignedBuffer(BLOCK) as buffer:
        reader.read("f", [whole(tmp_path / "f", 0, BLOCK, direct=True)], buffer.bytes).wait()
        assert bytes(buffer.bytes) == content


def test_a_file_that_is_not_there_is_an_error_at_once(reader: DiskReader, tmp_path: Path) -> None:
    with AlignedBuffer(BLOCK) as buffer, pytest.raises(CheckpointNotFoundError, match="No such file"):
        reader.read("gone", [whole(tmp_path / "gone", 0, 1, direct=True)], buffer.bytes)


def test_file_systems_without_direct_reads_are_read_through_the_page_cache(
    reader: DiskReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_file(tmp_path / "f", BLOCK)
    real_open = os.open

    def refuse_direct(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", refuse_direct)
    with AlignedBuffer(BLOCK) as buffer:
        reader.read("f", [whole(tmp_path / "f", 0, BLOCK, direct=True)], buffer.bytes).wait()
        assert bytes(buffer.bytes) == content


def test_disks_that_refuse_a_direct_read_are_read_through_the_page_cache(
    reader: DiskReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_file(tmp_path / "f", BLOCK)
    real_read, refused = os.preadv, []

    def refuse_once(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if not refused:
            refused.append(offset)
            raise OSError(22, "Invalid argument")
        return real_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse_once)
    with AlignedBuffer(BLOCK) as buffer:
        reader.read("f", [whole(tmp_path / "f", 0, BLOCK, direct=True)], buffer.bytes).wait()
        assert bytes(buffer.bytes) == content and refused


def test_no_thread_is_left_after_closing(tmp_path: Path) -> None:
    before = threading.active_count()
    make_file(tmp_path / "f", 10 * BLOCK)
    with DiskReader(num_threads=2, block_bytes=BLOCK) as reader, AlignedBuffer(10 * BLOCK) as buffer:
        transfer = reader.read("f", [whole(tmp_path / "f", 0, 10 * BLOCK, direct=True)], buffer.bytes)
        reader.close()
        assert transfer.is_complete
    assert threading.active_count() == before


def test_the_rate_counts_every_byte_that_was_read(reader: DiskReader, tmp_path: Path) -> None:
    make_file(tmp_path / "f", 10 * BLOCK)
    with AlignedBuffer(10 * BLOCK) as buffer:
        reader.read("f", [whole(tmp_path / "f", 0, 10 * BLOCK, direct=True)], buffer.bytes).wait()
    assert reader.bytes_per_second > 0
    assert reader.num_bytes == 10 * BLOCK
    assert reader.bytes_per_second == pytest.approx(reader.num_bytes / reader.busy_seconds)
