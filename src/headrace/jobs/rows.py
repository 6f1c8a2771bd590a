"""Rows of a job: one line of the input is one row, or the reason why it is none. Free of torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO, Literal

from headrace.errors import RequestError
from headrace.jobs.fields import check_keys, refuse
from headrace.jobs.json_lines import parse_object, read_lines
from headrace.jobs.request_fields import RequestFields, RequestKind, parse_request
from headrace.sampling.parameters import SamplingParams

RowShape = Literal["short", "batch_chat", "batch_completion"]

_BATCH_KEYS = ("custom_id", "method", "url", "body")
_BATCH_URLS: Mapping[str, tuple[RowShape, RequestKind]] = {
    "/v1/chat/completions": ("batch_chat", "chat"),
    "/v1/completions": ("batch_completion", "completion"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RowKey:
    """Which row it is, and in which shape its answer is written.

    Attributes:
        index: the row's place among the rows, from 0.
        line: its line in the input, from 1.
        row_id: `custom_id` or `id` as written; a short row without one is called `line-<line>`; None where the line
            could not be read far enough to know.
        digest: 24 hexadecimal digits made from the line's place and content; the same in every run.
    """

    index: int
    line: int
    row_id: str | int | None
    shape: RowShape
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line that asks something."""

    key: RowKey
    request: RequestFields


@dataclass(frozen=True, kw_only=True, slots=True)
class RowError:
    """A line that cannot be asked, and why."""

    key: RowKey
    error: RequestError


@dataclass(slots=True, kw_only=True)
class RowReader:
    """Reads the rows of one input, in order and one at a time.

    Attributes:
        defaults: sampling for what a row leaves out.
        limit: rows to read at most, faulty ones included; None reads all.
        num_bytes: of the rows that were read so far.
    """

    defaults: SamplingParams
    limit: int | None = None
    num_bytes: int = 0
    _shape: RowShape = "short"
    _custom_ids: set[bytes] = field(default_factory=set)

    def read(self, stream: BinaryIO) -> Iterator[Row | RowError]:
        """Yields a row or an error for every line of `stream` that is not blank; holds one line at a time."""
        for index, (line, raw) in enumerate(itertools.islice(read_lines(stream), self.limit)):
            self.num_bytes += len(raw)
            yield self.parse(raw, index=index, line=line)

    def parse(self, raw: bytes, *, index: int, line: int) -> Row | RowError:
        """Returns what one line asks.

        A line that says neither by its keys is answered in the shape of the line before it, so that a file of batch
        rows gets batch answers throughout.
        """
        row_id: str | int | None = None
        try:
            fields = parse_object(raw)
            if any(key in fields for key in ("custom_id", "url", "body")):
                self._shape = _batch_shape(fields)
                row_id = fields["custom_id"] if isinstance(fields.get("custom_id"), str) else None
                request = self._parse_batch_row(fields)
            else:
                self._shape = "short"
                row_id = _short_id(fields, line)
                request = _parse_short_row(fields, self.defaults)
        except RequestError as error:
            return RowError(key=self._key(raw, index, line, row_id), error=error)
        return Row(key=self._key(raw, index, line, row_id), request=request)

    def _key(self, raw: bytes, index: int, line: int, row_id: str | int | None) -> RowKey:
        digest = blake2b(b"%d:%s" % (line, raw), digest_size=12).hexdigest()
        return RowKey(index=index, line=line, row_id=row_id, shape=self._shape, digest=digest)

    def _parse_batch_row(self, fields: Mapping[str, Any]) -> RequestFields:
        check_keys(fields, known=_BATCH_KEYS, where="a batch row")
        for name in ("custom_id", "url", "body"):
            if fields.get(name) is None:
                refuse(name, f"{name!r} is missing; a batch row has {_listed(_BATCH_KEYS)}",
                       code="missing_required_parameter")  # fmt: skip
        custom_id, method, url, body = (fields.get(name) for name in _BATCH_KEYS)
        if not isinstance(custom_id, str) or not custom_id:
            refuse("custom_id", f"custom_id: {custom_id!r}; expected a string", code="invalid_type")
        if method not in (None, "POST"):
            refuse("method", f"method: {method!r}; expected 'POST'", code="invalid_value")
        if not isinstance(url, str) or url not in _BATCH_URLS:
            refuse("url", f"url: {url!r}; expected {_listed(_BATCH_URLS, ' or ')}", code="unsupported_url")
        if not isinstance(body, dict):
            refuse("body", "body: expected an object with the request's fields", code="invalid_type")
        self._note_custom_id(custom_id)
        return parse_request(body, kind=_BATCH_URLS[url][1], defaults=self.defaults)

    def _note_custom_id(self, custom_id: str) -> None:
        digest = blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._custom_ids:
            message = f"custom_id: {custom_id!r} stands on an earlier line too; give every row its own"
            refuse("custom_id", message, code="duplicate_custom_id")
        self._custom_ids.add(digest)


_BYTES_PER_TOKEN = 4
"""In English and in code, about; fewer in most other languages, where rows take more memory than was thought."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCensus:
    """What reading an input once found.

    Attributes:
        num_errors: rows that cannot be asked; prompts are not tokenized, so one that is too long is not among them.
        num_answers: that the other rows ask for.
        first_error: the first of them.
        num_bytes: of all rows.
    """

    num_rows: int
    num_errors: int
    num_answers: int
    first_error: RowError | None
    num_bytes: int

    def typical_tokens(self, max_tokens: int) -> int:
        """Returns about how many tokens a row has at its end, prompt and an answer of `max_tokens`."""
        return self.num_bytes // max(1, self.num_rows) // _BYTES_PER_TOKEN + max_tokens


def take_census(stream: BinaryIO, *, defaults: SamplingParams, limit: int | None = None) -> RowCensus:
    """Reads a whole input, keeping nothing but the counts."""
    num_rows = num_errors = num_answers = 0
    first_error: RowError | None = None
    reader = RowReader(defaults=defaults, limit=limit)
    for row in reader.read(stream):
        num_rows += 1
        if isinstance(row, RowError):
            num_errors += 1
            first_error = first_error or row
        else:
            num_answers += row.request.params.n
    return RowCensus(
        num_rows=num_rows,
        num_errors=num_errors,
        num_answers=num_answers,
        first_error=first_error,
        num_bytes=reader.num_bytes,
    )


def _batch_shape(fields: Mapping[str, Any]) -> RowShape:
    return "batch_completion" if fields.get("url") == "/v1/completions" else "batch_chat"


def _short_id(fields: Mapping[str, Any], line: int) -> str | int:
    value = fields.get("id")
    if value is None:
        return f"line-{line}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        refuse("id", f"id: {value!r}; expected a string or a whole number", code="invalid_type")
    return value


def _parse_short_row(fields: Mapping[str, Any], defaults: SamplingParams) -> RequestFields:
    request = {key: value for key, value in fields.items() if key != "id"}
    return parse_request(request, kind="either", defaults=defaults)


def _listed(names: Mapping[str, object] | tuple[str, ...], separator: str = ", ") -> str:
    return separator.join(repr(name) for name in names)
