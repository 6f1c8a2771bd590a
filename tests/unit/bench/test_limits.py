"""The machine's limits: from a calibration, or measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.bench.limits import machine_limits
from headrace.compression.weight_codecs import Int8Codec
from headrace.planner.calibration_store import save_calibration
from headrace.planner.machine import identify_machine
from tests.unit.bench.test_utilization import WORK
from tests.unit.planner.calibrations import made_up


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))


def test_a_calibration_of_this_machine_is_taken_whichever_disk_it_was_for() -> None:
    save_calibration(made_up(machine=identify_machine(), disk_id=7))
    found = machine_limits(WORK, pytest.fail)
    assert (found.memory_bytes_per_second, found.matrix_operations_per_second) == (10e9, 90e9)
    assert found.measured == "2026-11-21T08:00:00+00:00, headrace doctor --calibrate"


def test_without_one_the_machine_is_measured() -> None:
    save_calibration(made_up())  # another machine's
    found = machine_limits(WORK, pytest.fail)
    assert found.memory_bytes_per_second > 0 and found.matrix_operations_per_second > 0
    assert found.measured.endswith("after the runs")


def test_products_with_packed_weights_are_measured() -> None:
    save_calibration(made_up(machine=identify_machine()))
    packed = machine_limits(replace(WORK, weight_codec=Int8Codec()), pytest.fail)
    assert packed.measured.endswith("after the runs") and packed.matrix_operations_per_second > 0


def test_a_dtype_that_was_not_calibrated_is_measured() -> None:
    save_calibration(made_up(machine=identify_machine()))
    assert machine_limits(replace(WORK, dtype="float16"), pytest.fail).measured.endswith("after the runs")
