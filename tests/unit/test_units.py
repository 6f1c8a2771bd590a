"""Sizes, rates and times as people write and read them."""

from __future__ import annotations

import pytest

from headrace.errors import OptionError
from headrace.units import format_rate, parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1GB/s", 10**9), ("500MiB/s", 500 * 1024**2), (" 2.5 gb / S ", 2_500_000_000), ("1048576/s", 1048576)],
)
def test_a_rate_is_a_size_per_second(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["1GB", "fast", "GB/s", "1GB/h", "/s", "-1GB/s", ""])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(OptionError, match=f"not a rate: '{text}'; expected something like 1GB/s or 500MiB/s"):
        parse_rate(text)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="lets nothing pass"):
        parse_rate("0GB/s")


@pytest.mark.parametrize(
    ("rate", "text"), [(17, "17 B/s"), (523_000_000, "523 MB/s"), (999_900_000, "1.00 GB/s"), (2.345e9, "2.35 GB/s")]
)
def test_a_rate_is_shown_in_powers_of_ten(rate: float, text: str) -> None:
    assert format_rate(rate) == text
