"""The files that a curve is written to."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest

from headrace.bench.curve import CurveFile, CurvePoint
from headrace.errors import OptionError
from tests.unit.bench.reports import made_up


def test_a_point_has_the_mean_rate_of_its_runs_and_the_medians_of_its_rows() -> None:
    (point,) = made_up(4).points
    assert CurvePoint.of(point) == CurvePoint(
        batch_size=4,
        generated_tokens_per_second=(12 / 2 + 12 / 4) / 2,
        generated_tokens_per_second_std=1.5,
        ttft_seconds=1.0,
        tpot_seconds=0.5,
        tpot_p99_seconds=0.5,
        end_to_end_seconds=2.0,
        mbu=0.25,
        mfu=0.031,
    )


def test_csv_has_a_line_for_each_point(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    CurveFile(str(file)).write(made_up(1, 8))
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["batch_size"] for row in rows] == ["1", "8"]
    assert [float(row["generated_tokens_per_second"]) for row in rows] == [9 / 8, 9]
    assert rows[0]["tpot_seconds"] == "0.5"


def test_what_was_not_measured_is_empty_in_csv(tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    CurveFile(str(file)).write(made_up(1, max_tokens=1))
    (row,) = csv.DictReader(file.read_text().splitlines())
    assert row["tpot_seconds"] == row["mbu"] == ""


def test_json_has_everything(tmp_path: Path) -> None:
    file = tmp_path / "CURVE.JSON"
    CurveFile(str(file)).write(made_up(1, 8))
    found = json.loads(file.read_text())
    assert [point["workload"]["num_rows"] for point in found["points"]] == [1, 8]
    assert found["points"][1]["measures"]["ttft_seconds"]["p99"] == 1.0
    assert found["subject"]["machine"]["cpu"] == "A CPU"


@pytest.mark.parametrize("name", ["curve", "curve.jpg", "curve.png.txt"])
def test_a_name_that_says_no_known_form_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"ends with \.png, \.csv, \.json"):
        CurveFile(name)


def test_a_folder_that_is_not_there_is_found_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected a file in a folder that exists"):
        CurveFile(str(tmp_path / "none" / "curve.csv"))


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    file = CurveFile(str(tmp_path / "curve.csv"))
    (tmp_path / "curve.csv").mkdir()
    with pytest.raises(OptionError, match=r"cannot write the curve .*: Is a directory"):
        file.write(made_up(1))


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_without_matplotlib_a_picture_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"pip install 'headrace\[plot\]'.*\.csv or \.json"):
        CurveFile(str(tmp_path / "curve.png"))


def test_with_matplotlib_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra headrace[plot]")
    CurveFile(str(tmp_path / "curve.png")).write(made_up(1, 2, 4))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
