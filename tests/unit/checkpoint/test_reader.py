from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.checkpoint.reader import RangeReader
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError


def test_a_range_is_read_to_its_last_byte(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(range(100)))
    buffer = bytearray(10)
    with RangeReader() as reader:
        reader.read_into(file, 90, memoryview(buffer))
    assert buffer == bytes(range(90, 100))


def test_a_file_that_ends_too_early_is_corrupt(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(100))
    with (
        RangeReader() as reader,
        pytest.raises(CorruptCheckpointError, match=r"ends at byte 100; .* byte 101"),
    ):
        reader.read_into(file, 91, memoryview(bytearray(10)))


def test_a_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    with RangeReader() as reader, pytest.raises(CheckpointNotFoundError, match="No such file"):
        reader.read_into(tmp_path / "gone", 0, memoryview(bytearray(1)))


def test_a_read_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    with RangeReader() as reader, pytest.raises(CorruptCheckpointError, match="cannot read 1 bytes at 0"):
        reader.read_into(tmp_path, 0, memoryview(bytearray(1)))


def test_each_file_is_opened_once_and_closed(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    file = tmp_path / "f"
    file.write_bytes(bytes(10))
    before = open_files()
    with RangeReader() as reader:
        for offset in range(10):
            reader.read_into(file, offset, memoryview(bytearray(1)))
        assert open_files() == before + 1
    assert open_files() == before
