"""Lines of a file and the object on a line."""

from __future__ import annotations

import errno
import io

import pytest

from headrace.errors import RequestError, UsageError
from headrace.jobs.json_lines import parse_object, read_lines


def lines_of(data: bytes, **limits: int) -> list[tuple[int, bytes]]:
    return list(read_lines(io.BytesIO(data), **limits))


def test_blank_lines_are_no_lines_but_count() -> None:
    assert lines_of(b"a\n\n  \t\r\nb\r\nc") == [(1, b"a"), (4, b"b"), (5, b"c")]


def test_a_byte_order_mark_at_the_start_is_dropped() -> None:
    assert lines_of(b"\xef\xbb\xbf{}\n") == [(1, b"{}")]


@pytest.mark.parametrize("size", [8, 9, 10, 11, 12, 5000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_that_is_too_long_is_cut_and_the_next_one_is_whole(size: int, end: bytes) -> None:
    found = lines_of(b"x" * size + end + (b"next" if end else b""), max_line_bytes=8)
    assert found[0] == (1, b"x" * min(size, 9))
    assert found[1:] == ([(2, b"next")] if end else [])


def test_a_cut_line_is_refused() -> None:
    with pytest.raises(RequestError, match="longer than 8 bytes") as caught:
        parse_object(b'{"a": 12345}', max_line_bytes=8)
    assert caught.value.code == "line_too_long"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b'{"a": ', "invalid_json", "not JSON: .* at character 7"),
        (b"hello", "invalid_json", "not JSON"),
        (b"[1]", "invalid_json", "this line is an array"),
        (b'"text"', "invalid_json", "this line is a string"),
        (b"null", "invalid_json", "this line is null"),
        (b'{"a": NaN}', "invalid_json", "NaN is no JSON number"),
        (b'{"a": -Infinity}', "invalid_json", "-Infinity is no JSON number"),
        (b'{"a": 1, "b": 2, "a": 3}', "invalid_json", "the key 'a' appears twice"),
        (b'{"a": {"b": 1, "b": 1}}', "invalid_json", "the key 'b' appears twice"),
        (b'{"a": "\\ud83d"}', "invalid_json", "surrogate"),
        (b'{"a": "\\uD83D and more"}', "invalid_json", "surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid_json", "not JSON"),
        (b'{"a": ' + b"[" * 200_000, "invalid_json", "nested too deeply"),
        (b'{"a": "\xe9"}', "invalid_encoding", "byte 8 of the line is not UTF-8: 0xe9"),
        ("{}".encode("utf-16"), "invalid_encoding", "byte 1 .* 0xff"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_reason(line: bytes, code: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_object(line)
    assert caught.value.code == code


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


class BrokenFile(io.BytesIO):
    def readline(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError(errno.EIO, "Input/output error")
        return super().readline(size)


def test_a_file_that_cannot_be_read_on_is_one_clear_sentence() -> None:
    lines = read_lines(BrokenFile(b"a\nb\n"))
    assert next(lines) == (1, b"a")
    with pytest.raises(UsageError, match="cannot read the input after line 1: Input/output error"):
        next(lines)
