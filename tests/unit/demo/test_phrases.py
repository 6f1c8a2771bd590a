from __future__ import annotations

import datetime
import random

import pytest

from headrace.demo import phrases


@pytest.mark.parametrize(("number", "words"), [(1, "one"), (12, "twelve"), (20, "twenty"), (75, "seventy-five")])
def test_numbers_are_spelled(number: int, words: str) -> None:
    assert phrases.number_in_words(number) == words


def test_a_time_is_written_in_words_and_by_both_clocks() -> None:
    rng = random.Random(0)
    written = {phrases.write_time(rng, "15:30") for _ in range(300)}
    assert {"15:30", "3:30 pm", "half past three"} <= written


def test_a_quarter_to_names_the_following_hour() -> None:
    rng = random.Random(0)
    assert "quarter to one" in {phrases.write_time(rng, "12:45") for _ in range(300)}


def test_a_date_is_written_in_words_and_in_digits() -> None:
    rng = random.Random(0)
    written = {phrases.write_date(rng, datetime.date(2027, 3, 14)) for _ in range(2000)}
    assert {"14 March 2027", "March 14, 2027", "14.03.2027", "14/3/2027", "2027-03-14", "14th of March 2027"} <= written


def test_quantities_are_spelled_or_counted_by_the_dozen() -> None:
    rng = random.Random(0)
    assert {phrases.write_quantity(rng, 12) for _ in range(100)} == {"12", "twelve", "a dozen"}
