"""`headrace cache`: a list of what Headrace wrote, and removing it, and only that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headrace.cli.main import main
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_copies import with_copies
from headrace.models.weight_map import build_random_weight_map
from headrace.planner.calibration_store import save_calibration
from headrace.storage.folders import DiskTier
from tests.tiny_configs import TINY_CONFIGS
from tests.unit.planner.calibrations import made_up

FOREIGN = ("weights/model.safetensors", "weights/notes.txt", "calibrations/mine.json", "photo.jpg")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of one model, a calibration, and files of somebody else."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HEADRACE_CACHE", str(folder))
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIGS["llama"]))
    model = build_skeleton(tmp_path, torch.float32)
    with_copies(model, build_random_weight_map(model, 0), DiskTier(folder=folder))
    save_calibration(made_up())
    for name in FOREIGN:
        (folder / name).write_text("not Headrace's")
    return folder


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[str]]:
    """Names of what is there and of what was removed, from the JSON."""
    assert main(["cache", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    return {key: [entry["name"] for entry in found[key]] for key in ("entries", "removed")}


def assert_foreign_files_stay(folder: Path) -> None:
    assert all((folder / name).read_text() == "not Headrace's" for name in FOREIGN)


def test_copies_and_calibrations_are_listed_with_size_and_date(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    weights, calibration = found["entries"]
    files = list((cache / "weights").glob("????????????????????????????????.safetensors"))
    assert err == "" and found["folder"] == str(cache) and found["removed"] == []
    assert (weights["kind"], weights["what"]) == ("weights", "random weights of llama in float32")
    assert (weights["num_files"], weights["size_bytes"]) == (len(files), sum(file.stat().st_size for file in files))
    assert (calibration["kind"], calibration["what"]) == ("calibration", "A CPU, cpu, /models")
    assert found["total_bytes"] == weights["size_bytes"] + calibration["size_bytes"]
    assert weights["written"].startswith("20") and weights["written"].endswith("+00:00")


def test_people_get_a_table_with_the_total(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    assert "random weights of llama in float32" in out and "A CPU, cpu, /models" in out and "total" in out
    assert "photo" not in out and "model.safetensors" not in out


def test_everything_is_cleared_and_nothing_else(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listed(capsys)["entries"]
    assert main(["cache", "--clear"]) == 0
    out, err = capsys.readouterr()
    assert out.count("removed ") == len(before) == 2
    assert "free again" in err
    assert_foreign_files_stay(cache)
    assert listed(capsys)["entries"] == []
    left = sorted(str(file.relative_to(cache)) for file in cache.rglob("*") if file.is_file())
    assert left == sorted(FOREIGN)


def test_folders_that_become_empty_go(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FOREIGN:
        (cache / name).unlink()
    assert main(["cache", "--clear", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert list(cache.iterdir()) == []
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{cache} holds nothing that Headrace wrote\n"


def test_only_what_is_named_is_cleared(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, calibration = listed(capsys)["entries"]
    assert listed(capsys, "--clear", calibration) == {"entries": [weights], "removed": [calibration]}
    assert_foreign_files_stay(cache)


@pytest.mark.parametrize("name", ["photo.jpg", "model.safetensors", "../cache", "weights"])
def test_what_is_not_headrace_s_own_is_refused_and_all_stays(
    name: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listed(capsys)["entries"]
    assert main(["cache", "--clear", before[0], name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"headrace: {name!r} is nothing that Headrace wrote") and err.count("\n") == 1
    assert listed(capsys)["entries"] == before
    assert_foreign_files_stay(cache)


def test_a_link_is_not_followed(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    link = cache / "weights" / f"{'0' * 32}.safetensors"
    link.symlink_to(precious)
    assert main(["cache", "--clear"]) == 0
    assert link.is_symlink() and precious.read_text() == "data"
    capsys.readouterr()


def test_what_a_dead_process_left_is_listed_and_what_a_live_one_writes_is_not(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (cache / "weights" / f"{'a' * 32}.{ended.pid}.tmp").write_bytes(b"half")
    (cache / "weights" / f"{'b' * 32}.{os.getpid()}.tmp").write_bytes(b"half")
    assert [name for name in listed(capsys)["entries"] if name.startswith("unfinished")] == ["unfinished-aaaaaaaa"]


def test_a_damaged_copy_can_be_cleared(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "weights" / f"{'c' * 32}.safetensors").write_bytes(b"\xff" * 100)
    assert "unknown-cccccccc" in listed(capsys)["entries"]
    assert listed(capsys, "--clear", "unknown-cccccccc")["removed"] == ["unknown-cccccccc"]


def test_disk_names_another_folder_as_in_run(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    assert listed(capsys, "--disk", str(tmp_path / "other"))["entries"] == []
    assert len(listed(capsys, "--disk", f"{cache}:5GiB")["entries"]) == 2
    assert main(["cache", "--disk", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("headrace: no such folder")


def test_no_torch_is_needed(cache: Path) -> None:
    program = (
        "import sys; from headrace.cli.main import main; main(['cache', '--json']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
