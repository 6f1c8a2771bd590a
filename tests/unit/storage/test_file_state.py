from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.storage.file_state import FileState


def test_a_file_that_is_left_alone_looks_the_same(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    before = FileState.of(descriptor)
    os.pread(descriptor, 7, 0)
    assert FileState.of(descriptor) == before
    os.close(descriptor)


@pytest.mark.parametrize("size", [3, 7, 20])
def test_other_content_looks_different_whatever_its_size(size: int, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    os.utime(tmp_path / "f", ns=(1, 1))
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    before = FileState.of(descriptor)
    (tmp_path / "f").write_bytes(b"x" * size)
    assert FileState.of(descriptor) != before
    os.close(descriptor)


def test_an_open_file_is_the_same_after_its_name_went_to_another(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    (tmp_path / "other").write_bytes(b"else")
    descriptor = os.open(tmp_path / "f", os.O_RDONLY)
    before = FileState.of(descriptor)
    (tmp_path / "other").replace(tmp_path / "f")
    assert FileState.of(descriptor) == before
    os.close(descriptor)
