"""What may be said about the form of an answer."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import RequestError
from headrace.sampling.parameters import SamplingParams
from headrace.sampling.structured_outputs import StructuredOutputs


def test_a_schema_is_one_however_it_is_written() -> None:
    given = [{"type": "object", "required": ["ä"]}, '{"type": "object",\n "required": ["ä"]}']
    objects = {StructuredOutputs(json=schema) for schema in given}
    assert len(objects) == 1 and objects.pop().kind == "json"


def test_the_order_of_properties_is_kept_because_answers_follow_it() -> None:
    orders = [{"properties": {"a": {}, "b": {}}}, {"properties": {"b": {}, "a": {}}}]
    assert len({StructuredOutputs(json=schema) for schema in orders}) == 2


def test_true_is_any_object() -> None:
    assert StructuredOutputs(json=True) == StructuredOutputs(json={"type": "object"})


def test_choices_are_kept_as_a_tuple() -> None:
    assert StructuredOutputs(choice=["a", "b"]).choice == ("a", "b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing is given; expected exactly one of json, regex, choice, grammar"),
        ({"json": True, "regex": "a"}, "json and regex are given"),
        ({"json": "{"}, "json is no JSON"),
        ({"json": {"minimum": float("nan")}}, "json is no JSON"),
        ({"json": {"enum": {1, 2}}}, "json is no JSON"),
        ({"json": "5"}, "expected a JSON schema"),
        ({"json": [1]}, "expected a JSON schema"),
        ({"json": False}, "expected a JSON schema"),
        ({"regex": ""}, "regex is ''; expected a text"),
        ({"grammar": 3}, "grammar is 3; expected a text"),
        ({"choice": []}, "choice is"),
        ({"choice": "yes"}, "choice is 'yes'; expected a list of texts"),
        ({"choice": ["a", ""]}, "none of them empty"),
    ],
)
def test_what_cannot_be_a_form_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        StructuredOutputs(**fields)
    assert message in str(caught.value)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "structured_outputs")


def test_min_tokens_contradicts_a_form() -> None:
    with pytest.raises(RequestError, match="structured outputs") as caught:
        SamplingParams(structured_outputs=StructuredOutputs(regex="a"), min_tokens=1)
    assert caught.value.param == "min_tokens"


@pytest.mark.parametrize("name", ["structured_outputs", "logits_processors"])
def test_a_value_of_another_type_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: ["[0-9]+"]})  # type: ignore[arg-type]


def test_parameters_with_a_form_can_be_keys() -> None:
    one, other = (SamplingParams(structured_outputs=StructuredOutputs(json=True)) for _ in range(2))
    assert len({one, other}) == 1
