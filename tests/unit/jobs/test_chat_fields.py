"""Messages, tools and what the chat template is told, in OpenAI's and vLLM's spelling."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import RequestError
from headrace.jobs.request_fields import RequestFields, parse_request
from headrace.models.chat import ChatOptions
from headrace.sampling.parameters import SamplingParams

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def parse(fields: dict[str, Any]) -> RequestFields:
    return parse_request(fields, kind="either", defaults=SamplingParams())


def test_tools_and_template_keys_reach_the_template() -> None:
    asked = parse(
        {
            "messages": [USER],
            "tools": [TOOL],
            "tool_choice": "auto",
            "chat_template_kwargs": {"enable_thinking": False},
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
    )
    assert asked.chat == ChatOptions(
        tools=(TOOL,),
        template_kwargs={"enable_thinking": False},
        add_generation_prompt=False,
        continue_final_message=True,
    )


def test_with_tool_choice_none_the_template_gets_no_tools() -> None:
    assert parse({"messages": [USER], "tools": [TOOL], "tool_choice": "none"}).chat == ChatOptions()


def test_a_call_of_a_tool_and_its_result_are_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
    ]
    assistant, result = parse({"messages": turns}).messages or ()
    assert assistant["tool_calls"] == [{**call, "function": {"name": "weather", "arguments": {"city": "Rome"}}}]
    assert "content" not in assistant
    assert result == turns[1]


def test_a_prompt_may_leave_special_tokens_out() -> None:
    assert parse({"prompt": "x"}).add_special_tokens
    assert not parse({"prompt": "x", "add_special_tokens": False}).add_special_tokens


def test_what_changes_nothing_is_accepted_beside_a_prompt() -> None:
    fields = {"prompt": "x", "tools": [], "tool_choice": "none", "add_generation_prompt": True}
    assert parse(fields).chat == ChatOptions()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": [USER], "tools": {}}, "tools", "invalid_type"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools[0]", "invalid_type"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"messages": [USER], "chat_template_kwargs": []}, "chat_template_kwargs", "invalid_type"),
        ({"messages": [USER], "continue_final_message": True}, "continue_final_message", "invalid_value"),
        ({"messages": [USER], "add_generation_prompt": 1}, "add_generation_prompt", "invalid_type"),
        ({"messages": [USER], "add_special_tokens": False}, "add_special_tokens", "invalid_value"),
        ({"prompt": "x", "add_special_tokens": 1}, "add_special_tokens", "invalid_type"),
        ({"prompt": "x", "tools": [TOOL]}, "tools", "invalid_value"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls", "invalid_type"),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls[0]", "invalid_type"),
        ({"messages": [{**USER, "reasoning_content": 1}]}, "messages[0].reasoning_content", "invalid_type"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "invalid_type",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse(fields)
    assert (refused.value.param, refused.value.code) == (param, code)
