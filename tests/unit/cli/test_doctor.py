"""`headrace doctor`: a report for people, the same as JSON, and rates that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headrace.cli.main import main
from headrace.errors import DiskSpaceError
from headrace.planner import calibrate_machine
from headrace.planner.calibration_record import Calibration
from headrace.planner.calibration_store import calibration_file, save_calibration
from headrace.planner.disk import device_id
from headrace.planner.machine import identify_machine
from tests.unit.planner.calibrations import made_up


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def of_this_machine(folder: Path) -> Calibration:
    return made_up(machine=identify_machine(), disk_id=device_id(folder))


def test_without_rates_the_machine_is_shown_and_how_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Python" in out and torch.__version__ in out and "O_DIRECT" in out
    assert "not measured yet: headrace doctor --calibrate" in out
    assert not (tmp_path / "cache").exists()


def test_the_last_rates_of_machine_and_disk_are_shown_with_their_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_calibration(of_this_machine(tmp_path))
    assert main(["doctor", str(tmp_path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "Measured 2026-11-21T08:00:00+00:00 on cpu in /models" in out
    assert "1.50 GB/s" in out and "8.0 MiB at a time" in out
    assert "2048 x 2048, bfloat16" in out and "30.0" in out
    assert "attention, float32, decode, 16 rows of 1,024 tokens" in out


def test_json_has_everything_on_stdout_with_units_in_the_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_calibration(of_this_machine(tmp_path))
    assert main(["doctor", str(tmp_path), "--json", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["machine"]["memory_total_bytes"] > found["machine"]["memory_free_bytes"] > 0
    assert found["disk"]["device_id"] == device_id(tmp_path) and found["disk"]["free_bytes"] > 0
    assert found["calibration"]["disk_reads"][0]["bytes_per_second"] == 1e9
    assert found["calibration"]["matrix"][0]["operations_per_second"] == 2e9


def test_a_broken_file_of_rates_is_told_of_and_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_calibration(of_this_machine(tmp_path))
    file.write_text("{")
    assert main(["doctor", str(tmp_path), "--json", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["calibration"] is None
    assert str(file) in err and "ignored" in err and err.count("\n") == 1


def test_what_is_measured_is_kept_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = of_this_machine(tmp_path)
    monkeypatch.setattr(calibrate_machine, "calibrate_machine", lambda *_, **__: measured)
    assert main(["doctor", str(tmp_path), "--calibrate", "--json", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["calibration"]["disk_write_bytes_per_second"] == 0.8e9
    file = calibration_file(measured.machine, measured.disk_id)
    assert err == f"measured in 31.5 s; the rates are kept in {file}\n"
    assert Calibration.from_json(file.read_text()) == measured


def test_quiet_measuring_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate_machine, "calibrate_machine", lambda *_, **__: of_this_machine(tmp_path))
    assert main(["doctor", str(tmp_path), "--calibrate", "--quiet", "--device", "cpu"]) == 0
    assert capsys.readouterr().err == ""


def test_a_folder_that_is_not_there_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "/no/such/folder"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("headrace: no such folder: /no/such/folder; expected") and err.count("\n") == 1


def test_a_disk_without_room_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> Calibration:
        raise DiskSpaceError("full")

    monkeypatch.setattr(calibrate_machine, "calibrate_machine", full)
    assert main(["doctor", str(tmp_path), "--calibrate", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "headrace: full\n"
