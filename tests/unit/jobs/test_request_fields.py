"""OpenAI's and vLLM's request fields."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import RequestError
from headrace.jobs.request_fields import RequestFields, RequestKind, parse_request
from headrace.sampling.parameters import SamplingParams

USER = {"role": "user", "content": "hi"}


def parse(
    fields: dict[str, Any], kind: RequestKind = "either", defaults: SamplingParams | None = None
) -> RequestFields:
    return parse_request(fields, kind=kind, defaults=defaults or SamplingParams())


def refusal(fields: dict[str, Any], kind: RequestKind = "either") -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(fields, kind)
    return caught.value


def test_every_sampling_key_reaches_the_parameters() -> None:
    fields = {
        "prompt": "x",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "stop": ["a", "b"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "seed": 11,
        "n": 2,
        "logprobs": 4,
        "min_tokens": 1,
        "skip_special_tokens": False,
    }
    assert parse(fields).params == SamplingParams(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        stop=("a", "b"),
        stop_token_ids=(3,),
        ignore_eos=True,
        seed=11,
        n=2,
        logprobs=4,
        min_tokens=1,
        skip_special_tokens=False,
    )


def test_a_row_overrides_the_defaults_and_keeps_the_rest() -> None:
    defaults = SamplingParams(max_tokens=9, temperature=0.3)
    assert parse({"prompt": "x", "temperature": 1}, defaults=defaults).params == SamplingParams(
        max_tokens=9, temperature=1
    )


def test_null_is_as_good_as_leaving_a_key_out() -> None:
    fields = {"prompt": "x", "messages": None, "stop": None, "seed": None, "stream": None, "max_tokens": None}
    assert parse(fields).params == SamplingParams()


def test_max_completion_tokens_is_max_tokens() -> None:
    assert parse({"prompt": "x", "max_completion_tokens": 3}).params.max_tokens == 3
    assert parse({"prompt": "x", "max_completion_tokens": 3, "max_tokens": 3}).params.max_tokens == 3
    assert "contradict" in str(refusal({"prompt": "x", "max_completion_tokens": 3, "max_tokens": 4}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"logprobs": 5}, 5),
        ({"logprobs": 0}, 0),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 5}, 5),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({}, None),
    ],
)
def test_logprobs_are_understood_in_both_spellings(fields: dict[str, Any], expected: int | None) -> None:
    assert parse({"prompt": "x", **fields}).params.logprobs == expected


@pytest.mark.parametrize("fields", [{"top_logprobs": 3}, {"logprobs": False, "top_logprobs": 3}])
def test_top_logprobs_needs_logprobs(fields: dict[str, Any]) -> None:
    assert refusal({"prompt": "x", **fields}).param == "top_logprobs"


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    error = refusal({"prompt": "x", "max_token": 1, "Temperature": 1, "qqq": 1})
    assert error.code == "unknown_parameter"
    assert error.param == "max_token"
    assert str(error) == (
        "unknown keys in a request: 'max_token' (did you mean 'max_tokens'?), "
        "'Temperature' (did you mean 'temperature'?), 'qqq'"
    )


@pytest.mark.parametrize(
    ("key", "neutral", "other"),
    [
        ("stream", False, True),
        ("num_beams", 1, 4),
        ("num_beams", 1, True),
        ("use_beam_search", False, True),
        ("echo", False, True),
        ("stream_options", None, {"include_usage": True}),
    ],
)
def test_what_is_not_supported_is_accepted_only_where_it_does_nothing(key: str, neutral: object, other: object) -> None:
    assert parse({"prompt": "x", key: neutral}).params == SamplingParams()
    error = refusal({"prompt": "x", key: other})
    assert (error.code, error.param) == ("unsupported_parameter", key)


def test_penalties_biases_and_words_to_avoid_are_read() -> None:
    fields = {
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "typical_p": 0.9,
        "best_of": 3,
        "prompt_logprobs": 2,
        "logit_bias": {"5": -100},
        "bad_words": ["no", [1, 2]],
    }
    assert parse({"prompt": "x", **fields}).params == SamplingParams(
        presence_penalty=0.5,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        typical_p=0.9,
        best_of=3,
        prompt_logprobs=2,
        logit_bias={5: -100},
        bad_words=["no", [1, 2]],
    )
    assert refusal({"prompt": "x", "logit_bias": {"5": 101}}).param == "logit_bias"


def test_who_asks_and_which_model_is_meant_changes_nothing() -> None:
    request = parse({"prompt": "x", "model": "gpt-x", "user": "me", "metadata": {"a": "b"}})
    assert request == RequestFields(prompt="x", params=SamplingParams(), model="gpt-x")


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("either", {}, "'prompt' or 'messages' is missing"),
        ("chat", {}, "'messages' is missing"),
        ("completion", {"prompt": None}, "'prompt' is missing"),
        ("either", {"prompt": "x", "messages": [USER]}, "both given"),
        ("chat", {"prompt": "x"}, "unknown key in a request: 'prompt'"),
        ("completion", {"messages": [USER]}, "unknown key in a request: 'messages'"),
    ],
)
def test_a_request_asks_exactly_one_thing(kind: RequestKind, fields: dict[str, Any], message: str) -> None:
    assert message in str(refusal(fields, kind))


def test_a_prompt_may_be_text_or_token_ids() -> None:
    assert parse({"prompt": ""}).prompt == ""
    assert parse({"prompt": [1, 0]}).prompt_token_ids == (1, 0)


@pytest.mark.parametrize("prompt", [7, True, {}, [], ["a"], [1, -1], [1.0], [True], [[1], [2]]])
def test_any_other_prompt_is_refused(prompt: object) -> None:
    assert refusal({"prompt": prompt}).param == "prompt"


def test_text_parts_of_a_message_are_joined() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse({"messages": [{"role": "system", "content": content, "name": "s"}, USER]})
    assert request.messages == ({"role": "system", "content": "ab", "name": "s"}, USER)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        ([USER, "hi"], "messages[1]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "hi", "name": 1}], "messages[0].name"),
        ([{"role": "user", "content": "hi", "contnet": "x"}], "contnet"),
    ],
)
def test_a_wrong_message_is_refused_and_found(messages: object, param: str) -> None:
    assert refusal({"messages": messages}).param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": "5"},
        {"max_tokens": 5.0},
        {"max_tokens": True},
        {"max_tokens": 0},
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"temperature": 10**400},
        {"stop": 5},
        {"stop": [""]},
        {"n": 0},
        {"logprobs": -1},
        {"logprobs": "5"},
        {"skip_special_tokens": 1},
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(fields: dict[str, Any]) -> None:
    error = refusal({"prompt": "x", **fields})
    assert error.code in ("invalid_value", "invalid_type")
    assert error.param in fields


def test_a_long_value_is_shown_shortened() -> None:
    assert len(str(refusal({"messages": [{"role": "user", "content": [{"type": "x" * 500}]}]}))) < 200
