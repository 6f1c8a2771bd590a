"""Calibrations between runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.errors import DiskSpaceError
from headrace.planner.calibration_store import (
    calibrated_rates,
    calibration_file,
    latest_calibration,
    load_calibration,
    save_calibration,
)
from headrace.planner.disk import device_id
from headrace.planner.machine import identify_machine
from headrace.planner.placement import Rates
from headrace.units import MIB
from tests.unit.planner.calibrations import MACHINE, made_up


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_kept_is_found_again(cache: Path) -> None:
    assert load_calibration(MACHINE, 7, pytest.fail) is None
    file = save_calibration(made_up())
    assert file.parent == cache / "calibrations" and list(file.parent.iterdir()) == [file]
    assert load_calibration(MACHINE, 7, pytest.fail) == made_up()


def test_rates_of_another_disk_or_machine_are_not_taken() -> None:
    save_calibration(made_up())
    assert load_calibration(MACHINE, 8, pytest.fail) is None
    assert load_calibration(replace(MACHINE, torch="2.14.0"), 7, pytest.fail) is None
    assert load_calibration(replace(MACHINE, num_threads=1), 7, pytest.fail) is None


def test_a_broken_file_is_told_of_and_ignored() -> None:
    notes: list[str] = []
    save_calibration(made_up()).write_text('{"format": 1}')
    assert load_calibration(MACHINE, 7, notes.append) is None
    assert len(notes) == 1 and "ignored" in notes[0] and "headrace doctor --calibrate" in notes[0]


def test_a_file_that_is_not_text_is_ignored() -> None:
    notes: list[str] = []
    save_calibration(made_up()).write_bytes(b"\xff\xfe\x00")
    assert load_calibration(MACHINE, 7, notes.append) is None
    assert len(notes) == 1


def test_a_cache_that_cannot_be_written_is_the_user_s_to_change(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DiskSpaceError, match="HEADRACE_CACHE"):
        save_calibration(made_up())


def test_the_last_calibration_of_a_machine_is_found_whichever_disk_it_measured() -> None:
    assert latest_calibration(MACHINE, pytest.fail) is None
    newer = replace(made_up(disk_id=9), date="2026-11-22T08:00:00+00:00")
    for calibration in (newer, made_up(disk_id=7), made_up(machine=replace(MACHINE, num_threads=1), disk_id=8)):
        save_calibration(calibration)
    assert latest_calibration(MACHINE, pytest.fail) == newer
    notes: list[str] = []
    calibration_file(MACHINE, 9).write_text("{")
    assert latest_calibration(MACHINE, notes.append) == made_up(disk_id=7)
    assert len(notes) == 1 and "ignored" in notes[0]


def test_rates_for_streaming_are_those_of_the_file_s_disk(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"")
    here = made_up(machine=identify_machine(), disk_id=device_id(file))
    assert calibrated_rates(file, dtype="float32", num_threads=2, block_bytes=8 * MIB) is None
    save_calibration(here)
    found = calibrated_rates(file, dtype="float32", num_threads=2, block_bytes=8 * MIB)
    assert found == Rates(below=1.5e9, matrix=90e9)
    assert calibrated_rates(file, dtype="float16", num_threads=2, block_bytes=8 * MIB) is None
    assert calibrated_rates(file, dtype="float32", num_threads=3, block_bytes=8 * MIB) is None


def test_a_broken_file_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calibration_file(identify_machine(), device_id(tmp_path)).parent.mkdir(parents=True)
    calibration_file(identify_machine(), device_id(tmp_path)).write_text("{")
    assert calibrated_rates(tmp_path, dtype="float32", num_threads=2, block_bytes=8 * MIB) is None
    assert "ignored" in caplog.text
