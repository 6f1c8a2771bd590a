"""Where rows come from."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from headrace.errors import OptionError
from headrace.jobs.row_input import RowInput


def test_a_file_can_be_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"ab")
    source = RowInput(str(path))
    assert source.path == path
    for _ in range(2):
        with source.open() as stream:
            assert stream.read() == b"ab"


def test_a_missing_file_and_a_folder_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="No such file or directory; give a file of rows"):
        RowInput(str(tmp_path / "rows"))
    with pytest.raises(OptionError, match="it is a folder"):
        RowInput(str(tmp_path))


def test_stdin_is_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"rows")))
    source = RowInput("-")
    assert (source.path, source.name) == (None, "stdin")
    with source.open() as stream:
        assert stream.read() == b"rows"


def test_a_pipe_is_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"rows",))
    source = RowInput(str(path))
    assert source.path is None
    writer.start()
    with source.open() as stream:
        assert stream.read() == b"rows"
    writer.join()
