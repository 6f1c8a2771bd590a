"""The three spellings in which a request says which form its answer shall have."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import RequestError
from headrace.jobs.request_fields import parse_request
from headrace.sampling.parameters import SamplingParams
from headrace.sampling.structured_outputs import StructuredOutputs

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def parse(fields: dict[str, Any], defaults: SamplingParams | None = None) -> SamplingParams:
    fields = {"prompt": "x", **fields}
    return parse_request(fields, kind="either", defaults=defaults or SamplingParams()).params


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, {"json": True}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            {"json": SCHEMA},
        ),
        ({"structured_outputs": {"json": SCHEMA}}, {"json": SCHEMA}),
        ({"structured_outputs": {"regex": "a+", "json": None}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"structured_outputs": {"grammar": 'start: "a"', "json_object": False}}, {"grammar": 'start: "a"'}),
        ({"structured_outputs": {"json_object": True}}, {"json": True}),
        ({"guided_json": '{"type": "object"}'}, {"json": True}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_grammar": 'start: "a"', "response_format": {"type": "text"}}, {"grammar": 'start: "a"'}),
    ],
)
def test_every_spelling_is_understood(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert parse(fields).structured_outputs == StructuredOutputs(**expected)


def test_without_a_key_the_defaults_stay_and_text_takes_them_back() -> None:
    defaults = SamplingParams(structured_outputs=StructuredOutputs(regex="a+"))
    assert parse({}, defaults) == defaults
    assert parse({"response_format": None}, defaults) == defaults
    assert parse({"response_format": {"type": "text"}}, defaults).structured_outputs is None
    assert parse({"guided_regex": "b"}, defaults).structured_outputs == StructuredOutputs(regex="b")


@pytest.mark.parametrize(
    ("fields", "code", "param", "message"),
    [
        ({"guided_regex": "a", "guided_json": {}}, "invalid_value", "guided_regex", "guided_json asks for a form"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "invalid_value",
            "structured_outputs",
            "response_format asks for a form",
        ),
        ({"guided_regex": "a", "min_tokens": 2}, "invalid_value", "min_tokens", "structured outputs"),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs", "nothing is given"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "invalid_value", "structured_outputs", "are given"),
        (
            {"structured_outputs": {"json": {}, "json_object": True}},
            "invalid_value",
            "structured_outputs",
            "json_object",
        ),
        ({"structured_outputs": {"json_object": 3}}, "invalid_value", "structured_outputs", "json_object is 3"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "unsupported_parameter",
            "structured_outputs",
            "structural_tag",
        ),
        ({"structured_outputs": "a+"}, "invalid_type", "structured_outputs", "expected an object"),
        ({"response_format": "json"}, "invalid_type", "response_format", "expected an object"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format", "'xml'"),
        ({"response_format": {}}, "invalid_value", "response_format", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "invalid_type", "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "invalid_value", "response_format", "schema"),
        ({"response_format": {"type": "json_object", "x": 1}}, "unsupported_parameter", "response_format", "'x'"),
        ({"guided_json": "{"}, "invalid_value", "guided_json", "no JSON"),
        ({"guided_choice": "yes"}, "invalid_value", "guided_choice", "list of texts"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], code: str, param: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert message in str(caught.value)
