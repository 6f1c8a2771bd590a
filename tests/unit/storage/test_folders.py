from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace.errors import DiskSpaceError, OptionError
from headrace.storage.folders import DiskTier, parse_disk
from headrace.units import GIB, MIB


def test_a_folder_and_a_limit_are_told_apart_at_the_last_colon() -> None:
    assert parse_disk("/fast/ssd:60GiB") == DiskTier(folder=Path("/fast/ssd"), limit_bytes=60 * GIB)
    assert parse_disk("/fast/a:b:1MiB") == DiskTier(folder=Path("/fast/a:b"), limit_bytes=MIB)


def test_a_folder_alone_has_no_limit() -> None:
    assert parse_disk("/fast/ssd") == DiskTier(folder=Path("/fast/ssd"))


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse_disk("~/copies:1GiB").folder == Path("/home/someone/copies")


@pytest.mark.parametrize("text", [":60GiB", "/a:b/c"])
def test_what_is_neither_a_folder_nor_a_folder_with_a_size_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="expected FOLDER or FOLDER:SIZE"):
        parse_disk(text)


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match="plenty"):
        parse_disk("/fast/ssd:plenty")


@pytest.mark.parametrize(
    ("own", "desktop", "expected"),
    [
        ("/own", "/caches", "/own"),
        (None, "/caches", "/caches/headrace"),
        ("", "", "/home/someone/.cache/headrace"),
    ],
)
def test_without_an_option_it_is_the_users_cache(
    own: str | None, desktop: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", desktop)
    monkeypatch.delenv("HEADRACE_CACHE")
    if own is not None:
        monkeypatch.setenv("HEADRACE_CACHE", own)
    assert parse_disk(None) == DiskTier(folder=Path(expected))


def test_what_there_is_room_for_makes_the_folder_and_writes_nothing(tmp_path: Path) -> None:
    DiskTier(folder=tmp_path / "a" / "b", limit_bytes=100).require("a copy", 100)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_what_lies_there_already_counts_against_the_limit(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(bytes(60))
    tier = DiskTier(folder=tmp_path, limit_bytes=100)
    assert tier.free_bytes == 40
    tier.require("a copy", 40)
    with pytest.raises(DiskSpaceError, match=r"a copy needs 41 B .* 60 B of which is used; allow 101 B"):
        tier.require("a copy", 41)


def test_more_than_the_disk_has_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    tier = DiskTier(folder=tmp_path)
    assert tier.free_bytes < free
    with pytest.raises(DiskSpaceError, match="make room there, or name another disk's with --disk FOLDER"):
        tier.require("a copy", free)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    tier = DiskTier(folder=tmp_path / "file" / "folder")
    assert tier.free_bytes == 0
    with pytest.raises(DiskSpaceError, match="cannot write: Not a directory; name another folder"):
        tier.require("a copy", 1)


def test_files_that_another_process_removes_meanwhile_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("goes", "stays"):
        (tmp_path / name).write_bytes(bytes(10))
    real_is_file = Path.is_file

    def vanish(path: Path) -> bool:
        found = real_is_file(path)
        if path.name == "goes":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", vanish)
    tier = DiskTier(folder=tmp_path, limit_bytes=100)
    tier.require("a copy", 80)
    assert tier.free_bytes == 90
