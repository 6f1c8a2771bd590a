"""Lines of a file, one at a time, and the JSON object on a line, read strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from headrace.errors import RequestError, UsageError

MAX_LINE_BYTES = 64 * 1024**2
_BOM = b"\xef\xbb\xbf"


def read_lines(stream: BinaryIO, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yields `(line number from 1, line without its end)` for every line that is not blank.

    A longer line than `max_line_bytes` is yielded cut off one byte beyond it, so that memory stays bounded whatever
    the file holds. A byte order mark at the start is dropped.

    Raises:
        UsageError: the system cannot read on.
    """
    number = 0
    while raw := _next_line(stream, number, max_line_bytes + 2):
        number += 1
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if len(raw) > max_line_bytes + 1 and not raw.endswith(b"\n"):
            _skip_rest_of_line(stream)
        if line := raw.strip(b" \t\r\n"):
            yield number, line[: max_line_bytes + 1]


def _next_line(stream: BinaryIO, number: int, limit: int) -> bytes:
    try:
        return stream.readline(limit)
    except OSError as error:
        raise UsageError(f"cannot read the input after line {number}: {error.strerror or error}") from error


def _skip_rest_of_line(stream: BinaryIO) -> None:
    while (piece := stream.readline(1024**2)) and not piece.endswith(b"\n"):
        pass


def parse_object(line: bytes, *, max_line_bytes: int = MAX_LINE_BYTES) -> dict[str, Any]:
    """Returns the JSON object on `line`.

    Stricter than `json.loads`: NaN and Infinity, a key that appears twice, and half a surrogate pair are refused,
    because each would come out of the job as something else than went in.

    Raises:
        RequestError: `line_too_long`, `invalid_encoding`, `invalid_json`.
    """
    if len(line) > max_line_bytes:
        raise RequestError(
            f"the line is longer than {max_line_bytes} bytes; a row must be shorter", code="line_too_long"
        )
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"byte {error.start + 1} of the line is not UTF-8: 0x{line[error.start]:02x}; save the file as UTF-8",
            code="invalid_encoding",
        ) from None
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise RequestError(f"not JSON: {error.msg} at character {error.pos + 1}", code="invalid_json") from None
    except UnicodeEncodeError:
        raise RequestError("not text: half of a surrogate pair (\\ud8xx) stands alone", code="invalid_json") from None
    except RecursionError:
        raise RequestError("not a row: the JSON is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # a number of thousands of digits, or one of the two refusals below
        raise RequestError(f"not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(f"a row is a JSON object {{...}}; this line is {json_type(value)}", code="invalid_json")
    return value


def json_type(value: object) -> str:
    """Returns what JSON calls the type of `value`, with its article: `a string`, `an array`, ..."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
