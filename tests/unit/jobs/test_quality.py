"""How alike answers are, and which rows are asked twice."""

from __future__ import annotations

import io

import pytest

from headrace.jobs.quality import Agreement, agreement, answers, evenly_drawn
from headrace.jobs.rows import Row, RowReader
from headrace.sampling.parameters import SamplingParams
from headrace.testing import EchoLLM


def rows(text: str) -> list[object]:
    return list(RowReader(defaults=SamplingParams(), limit=None).read(io.BytesIO(text.encode())))


def test_answers_agree_up_to_the_first_token_that_differs() -> None:
    full = {0: (1, 2, 3), 1: (1, 2, 3, 4), 2: (5,), 3: (6, 7), 9: (1,)}
    other = {0: (1, 2, 3), 1: (1, 9, 3, 4), 2: (5, 6), 3: (), 8: (1,)}
    assert agreement(full, other) == Agreement(num_rows=4, num_equal=1, num_tokens=10, num_agreeing=5)
    assert str(agreement(full, other)) == (
        "of 4 rows that were also answered in full precision 1 have the same answer; "
        "50% of their 10 tokens come before the first that differs"
    )


def test_without_answers_there_is_nothing_to_compare() -> None:
    assert "no row was answered by both" in str(agreement({}, {1: (2,)}))


@pytest.mark.parametrize(("num_drawn", "expected"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (20, [0, 1, 2, 3, 4, 5])])
def test_rows_are_drawn_evenly(num_drawn: int, expected: list[int]) -> None:
    read = rows("\n".join('{"prompt": "a"}' for _ in range(6)))
    assert [row.key.index for row in evenly_drawn(read, 6, num_drawn)] == expected  # type: ignore[arg-type]


def test_rows_that_cannot_be_asked_are_left_to_the_job() -> None:
    read = rows('{"prompt": "a"}\n{"prompt": 5}\n{"prompt": ""}')
    drawn = evenly_drawn(read, 3, 3)  # type: ignore[arg-type]
    assert [row.key.index for row in drawn if isinstance(row, Row)] == [0, 2]
    assert list(answers(EchoLLM(), drawn)) == [0]
