"""Plain files within the folder, and JSON of a bounded size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.checkpoint.files import MAX_JSON_BYTES, check_place, open_plain, read_json
from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsafeCheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"a": 1}')
    (tmp_path / "outside.json").write_text("{}")
    return tmp_path / "folder"


def link(folder: Path, target: str) -> Path:
    (folder / "link.json").symlink_to(target)
    return folder / "link.json"


def test_an_object_is_read(folder: Path) -> None:
    assert read_json(folder / "config.json") == {"a": 1}


@pytest.mark.parametrize("target", ["config.json", "./config.json", "../folder/config.json"])
def test_a_link_within_the_folder_is_in_place(folder: Path, target: str) -> None:
    check_place(link(folder, target), folder)


def test_a_folder_that_is_a_link_is_where_its_files_lie(folder: Path) -> None:
    folder.with_name("other").symlink_to(folder)
    check_place(folder.with_name("other") / "config.json", folder.with_name("other"))


def test_a_file_in_a_folder_that_is_a_link_out_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "parts").symlink_to(tmp_path)
    with pytest.raises(UnsafeCheckpointError, match=r"parts/outside\.json is a link to .*outside\.json"):
        check_place(folder / "parts" / "outside.json", folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="copy the file there, or make the whole folder a link"):
        check_place(link(folder, "../outside.json"), folder)


@pytest.mark.parametrize(("target", "says"), [("gone", "a link to gone, which is not there"), ("link.json", "circle")])
def test_a_link_to_nothing_is_not_found(folder: Path, target: str, says: str) -> None:
    file = link(folder, target)
    for look in (lambda: check_place(file, folder), lambda: open_plain(file)):
        with pytest.raises(CheckpointNotFoundError, match=says):
            look()


def test_blobs_are_in_place_only_beside_snapshots(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_text("{}")
    with pytest.raises(UnsafeCheckpointError):
        check_place(link(folder, "../blobs/1"), folder)
    snapshot = tmp_path / "snapshots" / "commit"
    snapshot.mkdir(parents=True)
    check_place(link(snapshot, "../../blobs/1"), snapshot)


def test_what_is_no_plain_file_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(CorruptCheckpointError, match="a pipe, socket or device"):
        open_plain(folder / "pipe")
    with pytest.raises(CorruptCheckpointError, match="a folder"):
        open_plain(folder)


def test_a_file_beyond_the_bound_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as stream:
        stream.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(CorruptCheckpointError, match="larger than such a file may be"):
        read_json(folder / "config.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not JSON .*utf-8"),
        (b"[1]", "expected a JSON object"),
        (b"[" * 100_000, "not JSON .*recursion"),
        (b"<!doctype html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_other_content_is_refused_by_name(folder: Path, content: bytes, says: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=says) as refused:
        read_json(folder / "config.json")
    assert str(folder / "config.json") in str(refused.value)
