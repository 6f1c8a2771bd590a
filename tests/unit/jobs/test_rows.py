"""Rows in both shapes, and what is wrong with them."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest

from headrace.jobs.rows import Row, RowError, RowReader, take_census
from headrace.sampling.parameters import SamplingParams


def read(*lines: object, limit: int | None = None) -> list[Row | RowError]:
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return list(RowReader(defaults=SamplingParams(), limit=limit).read(io.BytesIO(data)))


def batch(custom_id: object = "a", **changes: object) -> dict[str, Any]:
    row = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "hi"}]},
    } | changes
    return {key: value for key, value in row.items() if value != "absent"}


def error_of(line: object) -> tuple[str, str | None]:
    (row,) = read(line)
    assert isinstance(row, RowError), row
    return row.error.code, row.error.param


def test_a_short_row_is_known_by_its_id_or_else_its_line() -> None:
    rows = read({"prompt": "a", "id": "x"}, b"", {"prompt": "b"}, {"prompt": "c", "id": 7})
    assert [(row.key.index, row.key.line, row.key.row_id) for row in rows] == [(0, 1, "x"), (1, 3, "line-3"), (2, 4, 7)]


def test_ids_of_short_rows_may_repeat() -> None:
    assert all(isinstance(row, Row) for row in read({"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}))


@pytest.mark.parametrize("row_id", [True, 1.5, [], {}])
def test_an_id_that_is_no_string_or_number_is_refused(row_id: object) -> None:
    assert error_of({"prompt": "a", "id": row_id}) == ("invalid_type", "id")


def test_a_batch_row_is_read_from_its_body() -> None:
    chat, completion = read(
        batch("a"), batch("b", url="/v1/completions", body={"prompt": "x", "max_tokens": 3, "model": "m"})
    )
    assert isinstance(chat, Row) and isinstance(completion, Row)
    assert (chat.key.shape, chat.key.row_id) == ("batch_chat", "a")
    assert chat.request.messages == ({"role": "user", "content": "hi"},)
    assert (completion.key.shape, completion.key.row_id) == ("batch_completion", "b")
    assert (completion.request.prompt, completion.request.params.max_tokens) == ("x", 3)


@pytest.mark.parametrize(
    ("row", "code", "param"),
    [
        (batch("absent"), "missing_required_parameter", "custom_id"),
        (batch(body="absent"), "missing_required_parameter", "body"),
        (batch(url="absent"), "missing_required_parameter", "url"),
        (batch(url=None), "missing_required_parameter", "url"),
        (batch(7), "invalid_type", "custom_id"),
        (batch(""), "invalid_type", "custom_id"),
        (batch(method="GET"), "invalid_value", "method"),
        (batch(url="/v1/embeddings"), "unsupported_url", "url"),
        (batch(url=["x"]), "unsupported_url", "url"),
        (batch(body=[1]), "invalid_type", "body"),
        (batch(bdy=1), "unknown_parameter", "bdy"),
        (batch(body={"prompt": "x"}), "unknown_parameter", "prompt"),
        (batch(body={"messages": [], "stream": True}), "unsupported_parameter", "stream"),
    ],
)
def test_a_wrong_batch_row_says_what_is_wrong(row: dict[str, Any], code: str, param: str) -> None:
    assert error_of(row) == (code, param)


def test_a_custom_id_may_stand_once() -> None:
    first, second, third = read(batch("a"), batch("a"), batch("b"))
    assert isinstance(first, Row) and isinstance(third, Row)
    assert isinstance(second, RowError)
    assert (second.error.code, second.key.line, second.key.row_id) == ("duplicate_custom_id", 2, "a")


def test_a_line_that_cannot_be_read_is_answered_in_the_shape_of_the_line_before() -> None:
    rows = read(b"{", batch("a"), b"{", {"prompt": "x"}, b"{")
    assert [row.key.shape for row in rows] == ["short", "batch_chat", "batch_chat", "short", "short"]
    assert [row.key.row_id for row in rows] == [None, "a", None, "line-4", None]


def test_an_error_keeps_the_row_s_id() -> None:
    short, long = read({"id": "me", "prompt": 5}, batch("you", url="/x"))
    assert (short.key.row_id, long.key.row_id) == ("me", "you")


def test_the_limit_counts_faulty_rows_too() -> None:
    assert len(read(b"{", b"", {"prompt": "a"}, {"prompt": "b"}, limit=2)) == 2


def test_a_digest_depends_on_line_and_content_alone() -> None:
    once, again = read({"prompt": "a"}, {"prompt": "a"}), read({"prompt": "a"}, {"prompt": "b"})
    assert once[0].key.digest == again[0].key.digest
    assert len({once[0].key.digest, once[1].key.digest, again[1].key.digest}) == 3


def test_a_census_counts_rows_and_keeps_the_first_error() -> None:
    data = b'{"prompt": "a", "n": 3}\n{"promt": "a"}\n{\n{"prompt": "b"}\n'
    census = take_census(io.BytesIO(data), defaults=SamplingParams())
    assert (census.num_rows, census.num_errors, census.num_answers) == (4, 2, 4)
    assert census.first_error is not None and census.first_error.key.line == 2


class EndlessRows(io.RawIOBase):
    """A file of a million rows that exists nowhere."""

    def __init__(self) -> None:
        self.num_read = 0

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> bytes:
        self.num_read += 1
        return b'{"prompt": "' + b"x" * 1000 + b'"}\n' if self.num_read <= 1_000_000 else b""


def test_rows_are_read_as_they_are_pulled() -> None:
    endless = EndlessRows()
    rows = RowReader(defaults=SamplingParams()).read(endless)  # type: ignore[arg-type]
    for _ in range(10):
        next(rows)
    assert endless.num_read == 10


def test_reading_many_rows_holds_one_at_a_time() -> None:
    tracemalloc.start()
    census = take_census(EndlessRows(), defaults=SamplingParams(), limit=5_000)  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert census.num_rows == 5_000
    assert peak < 200_000


def test_a_census_says_about_how_long_rows_become() -> None:
    rows = b"".join(json.dumps({"prompt": "x" * 400}).encode() + b"\n" for _ in range(10))
    census = take_census(io.BytesIO(rows), defaults=SamplingParams())
    assert census.typical_tokens(max_tokens=50) == pytest.approx(150, abs=5)
