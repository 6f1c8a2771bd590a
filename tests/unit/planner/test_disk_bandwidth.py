"""Measuring a disk leaves nothing behind."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from headrace.errors import DiskSpaceError
from headrace.planner.disk import describe_disk
from headrace.planner.disk_bandwidth import BLOCK_BYTES, NUM_THREADS, measure_disk
from headrace.units import MIB

Usage = namedtuple("Usage", "total used free")


def test_every_kind_of_reading_gets_a_rate_and_no_file_stays(tmp_path: Path) -> None:
    notes: list[str] = []
    found = measure_disk(tmp_path, file_bytes=64 * MIB, note=notes.append)
    kinds = [(read.num_threads, read.block_bytes) for read in found.reads]
    assert kinds == [(threads, size) for threads in NUM_THREADS for size in BLOCK_BYTES]
    assert all(1e5 < read.bytes_per_second < 1e12 for read in found.reads)
    assert 1e5 < found.write_bytes_per_second < 1e12
    assert found.direct_reads == describe_disk(tmp_path).direct_reads
    assert len(notes) == 1 + len(kinds) and "deleted at the end" in notes[0]
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_no_name_while_it_is_measured(tmp_path: Path) -> None:
    seen: list[list[Path]] = []
    measure_disk(tmp_path, file_bytes=64 * MIB, note=lambda _: seen.append(list(tmp_path.iterdir())))
    assert seen and not any(seen)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(message: str) -> None:
        if message.startswith("reading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_disk(tmp_path, file_bytes=64 * MIB, note=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_nearly_full_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 100 * MIB))
    with pytest.raises(DiskSpaceError, match=r"needs 128\.0 MiB of free space"):
        measure_disk(tmp_path)


def test_a_folder_that_is_none_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))
    with pytest.raises(DiskSpaceError, match="cannot measure the disk"):
        measure_disk(tmp_path / "none")
