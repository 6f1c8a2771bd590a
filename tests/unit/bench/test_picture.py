"""The picture of a curve."""

from __future__ import annotations

import pytest

from headrace.bench.picture import draw_curve, require_matplotlib
from headrace.errors import OptionError


def test_where_matplotlib_is_missing_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.bench.picture.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"matplotlib, which is not installed: pip install 'headrace\[plot\]'"):
        require_matplotlib()


def test_a_curve_is_a_png_of_two_lines_of_title_and_named_points() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra headrace[plot]")
    picture = draw_curve(rates=[10.0, 30.0], latencies=[1.0, 1.5], names=["1", "4"], title="a model\na workload")
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(picture[16:20]) == 1200
