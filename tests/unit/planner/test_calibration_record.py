"""Calibrations as values and as JSON."""

from __future__ import annotations

import json

import pytest

from headrace.planner.calibration_record import Calibration
from headrace.units import MIB
from tests.unit.planner.calibrations import made_up


def test_what_was_written_is_read_again() -> None:
    assert Calibration.from_json(made_up().to_json()) == made_up()


def test_rates_are_found_by_what_they_are_of() -> None:
    found = made_up()
    assert found.disk_rate(num_threads=2, block_bytes=8 * MIB) == 1.5e9
    assert found.disk_rate(num_threads=2, block_bytes=1 * MIB) is None
    assert found.matrix_rate(dtype="bfloat16", num_tokens=512) == 30e9
    assert found.matrix_rate(dtype="bfloat16", num_tokens=512, shape=(1, 2)) is None


def test_rates_and_sizes_have_their_units_in_their_names() -> None:
    found = json.loads(made_up().to_json())
    numbers = [key for part in (found, *found["disk_reads"], *found["matrix"], *found["attention"]) for key in part
               if isinstance(part[key], float)]  # fmt: skip
    assert all(key.endswith(("_per_second", "seconds")) for key in numbers), numbers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        made_up().to_json()[:-30],
        made_up().to_json().replace('"num_threads": 2', '"num_threads": "2"'),
        made_up().to_json().replace('"decode"', '"encode"'),
        made_up().to_json().replace("1500000000.0", "-1"),
        made_up().to_json().replace("1500000000.0", "NaN"),
        made_up().to_json().replace('"disk_id": 7', '"disk_id": true'),
        made_up().to_json().replace('"date"', '"day"'),
        made_up().to_json().replace('"disk_reads": [', '"disk_reads": [1, '),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Calibration.from_json(text)
