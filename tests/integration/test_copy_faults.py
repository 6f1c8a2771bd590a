"""Copies of weights on a disk that is full or fails, and what a process that was killed leaves of them."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.errors import DiskSpaceError
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_copies import groups_to_copy, with_copies
from headrace.models.weight_map import WeightMap, build_weight_map
from headrace.storage.folders import DiskTier
from headrace.units import MIB
from tests.integration.streamed_models import our_threads, save_sharded, streamed, tokens_of

_COPY_TWO_AND_A_HALF = """
import os
import signal
import sys

from headrace import LLM

num_written = 0


def stop_at_the_third(descriptor):
    global num_written
    num_written += 1
    if num_written == 3:
        print("half", flush=True)
        signal.pause()


os.fsync = stop_at_the_third
LLM(sys.argv[1], dtype="bfloat16", memory="4GiB", weights_on_device=0.0, disk=sys.argv[2])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp32, so that it is copied where it runs in bf16."""
    folder = tmp_path_factory.mktemp("sharded")
    save_sharded(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, ...]]:
    with streamed(model, dtype="bfloat16", disk=tmp_path_factory.mktemp("copies")) as llm:
        return tokens_of(llm)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 100 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "small"
    folder.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=100m"):
        pytest.skip(f"may not mount a small file system: {os.strerror(ctypes.get_errno())}")
    yield folder
    assert libc.umount(os.fsencode(folder)) == 0


def files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def weights_of(model: Path) -> WeightMap:
    return build_weight_map(build_skeleton(model, torch.bfloat16), Checkpoint.open(model))


def test_a_limit_that_is_too_low_is_an_error_and_a_higher_one_works(
    model: Path, expected: list[tuple[int, ...]], tmp_path: Path
) -> None:
    with (
        pytest.raises(DiskSpaceError, match=r"--disk allows 100\.0 KiB"),
        streamed(model, dtype="bfloat16", disk=f"{tmp_path}/copies:100KiB"),
    ):
        pass
    assert files_in(tmp_path / "copies") == [] and our_threads() == []
    with streamed(model, dtype="bfloat16", disk=f"{tmp_path}/copies:100MiB") as llm:
        assert tokens_of(llm) == expected


def test_a_folder_that_cannot_be_made_is_an_error_that_says_what_to_do(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    with (
        pytest.raises(DiskSpaceError, match=r"cannot write: .*; name another folder with --disk FOLDER"),
        streamed(model, dtype="bfloat16", disk=tmp_path / "file"),
    ):
        pass
    assert our_threads() == []


@pytest.mark.parametrize("call", [1, 4])
def test_a_disk_that_fills_up_on_the_way_leaves_whole_copies_only(
    call: int, model: Path, expected: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_sync, num_calls = os.fsync, 0

    def fill_up(descriptor: int) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fill_up)
        with (
            pytest.raises(DiskSpaceError, match="No space left on device; make room there, or name another"),
            streamed(model, dtype="bfloat16", disk=tmp_path),
        ):
            pass
    assert [file.suffix for file in files_in(tmp_path)] == [".safetensors"] * (call - 1)
    assert our_threads() == []
    with streamed(model, dtype="bfloat16", disk=tmp_path) as llm:
        assert tokens_of(llm) == expected


def test_a_file_system_that_others_fill_meanwhile_leaves_whole_copies_only(model: Path, small_disk: Path) -> None:
    weights, disk = weights_of(model), DiskTier(folder=small_disk)
    filler = small_disk / "filler"

    def fill(_: str) -> None:
        with filler.open("wb") as stream:
            stream.write(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - MIB))

    with pytest.raises(DiskSpaceError, match="No space left on device; make room there"):
        with_copies(build_skeleton(model, torch.bfloat16), weights, disk, fill)
    whole = files_in(small_disk / "weights")
    assert 0 < len(whole) < len(groups_to_copy(weights))
    assert {file.suffix for file in whole} == {".safetensors"}
    filler.unlink()
    with_copies(build_skeleton(model, torch.bfloat16), weights, disk)
    assert len(files_in(small_disk / "weights")) == len(groups_to_copy(weights))


def test_a_file_system_that_is_too_small_is_refused_before_anything_is_written(model: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(36 * MIB))
    with pytest.raises(DiskSpaceError, match="to spare; make room there"):
        with_copies(build_skeleton(model, torch.bfloat16), weights_of(model), DiskTier(folder=small_disk))
    assert files_in(small_disk) == [small_disk / "filler"]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "not a copy"])
def test_a_copy_that_was_damaged_is_made_again(
    damage: str, model: Path, expected: list[tuple[int, ...]], tmp_path: Path
) -> None:
    with streamed(model, dtype="bfloat16", disk=tmp_path):
        pass
    whole = {file: file.read_bytes() for file in files_in(tmp_path)}
    for file, content in whole.items():
        file.write_bytes({"truncated": content[:-10], "emptied": b"", "not a copy": b"x" * len(content)}[damage])
    with streamed(model, dtype="bfloat16", disk=tmp_path) as llm:
        assert tokens_of(llm) == expected
    assert {file: file.read_bytes() for file in files_in(tmp_path)} == whole


def test_a_process_that_is_killed_while_it_copies_leaves_nothing_that_is_used(
    model: Path, expected: list[tuple[int, ...]], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _COPY_TWO_AND_A_HALF, str(model), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert sorted(file.suffix for file in files_in(tmp_path)) == [".safetensors", ".safetensors", ".tmp"]
    with streamed(model, dtype="bfloat16", disk=tmp_path) as llm:
        assert tokens_of(llm) == expected
    assert {file.suffix for file in files_in(tmp_path)} == {".safetensors"}
    assert len(files_in(tmp_path)) == len(groups_to_copy(weights_of(model)))
