"""The fields of a conversation: messages, tools, and how the chat template is to end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headrace.jobs.fields import check_keys, refuse, show
from headrace.jobs.json_lines import json_type
from headrace.models.chat import ChatMessage, ChatOptions

CHAT_KEYS = ("tools", "tool_choice", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")

_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal")
_TEXT_KEYS = ("name", "tool_call_id", "reasoning_content")
_TOOL_FORM = '{"type": "function", "function": {"name": ..., ...}}'


def parse_messages(value: Any) -> tuple[ChatMessage, ...]:
    """Returns the messages as the chat template gets them: `null` left out, arguments of tool calls as objects.

    Raises:
        RequestError: one of them is none.
    """
    if not isinstance(value, list) or not value:
        what = "an empty array" if value == [] else json_type(value)
        refuse("messages", f"messages: {what}; expected an array of at least one message", code="invalid_type")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def parse_chat_options(given: Mapping[str, Any]) -> ChatOptions:
    """Returns what a request's `CHAT_KEYS` ask of the template.

    Raises:
        RequestError: a value that cannot be.
    """
    flags = {key: given.get(key, key == "add_generation_prompt") for key in CHAT_KEYS[2:4]}
    for key, flag in flags.items():
        if not isinstance(flag, bool):
            refuse(key, f"{key}: {show(flag)}; expected true or false", code="invalid_type")
    if flags["continue_final_message"] and flags["add_generation_prompt"]:
        refuse(
            "continue_final_message",
            "continue_final_message: the answer continues the last message; it needs add_generation_prompt: false",
            code="invalid_value",
        )
    choice = given.get("tool_choice", "auto")
    if choice not in ("none", "auto"):
        refuse(
            "tool_choice",
            f'tool_choice: {show(choice)} is not supported here; expected "auto" or "none"',
            code="unsupported_parameter",
        )
    template_kwargs = given.get("chat_template_kwargs", {})
    if not isinstance(template_kwargs, dict):
        refuse(
            "chat_template_kwargs",
            f"chat_template_kwargs: {json_type(template_kwargs)}; expected an object",
            code="invalid_type",
        )
    tools = _tools(given.get("tools", []))
    return ChatOptions(tools=() if choice == "none" else tools, template_kwargs=template_kwargs, **flags)


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list):
        refuse("tools", f"tools: {json_type(value)}; expected an array", code="invalid_type")
    for index, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            refuse(f"tools[{index}]", f"tools[{index}]: {show(tool)}; expected {_TOOL_FORM}", code="invalid_type")
    return tuple(value)


def _message(value: Any, param: str) -> ChatMessage:
    if not isinstance(value, dict):
        refuse(param, f'{param}: {json_type(value)}; expected {{"role": ..., "content": ...}}', code="invalid_type")
    check_keys(value, known=_MESSAGE_KEYS, where=param)
    message: ChatMessage = {key: item for key, item in value.items() if item is not None}
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        refuse(f"{param}.role", f'{param}.role: {show(role)}; expected a string like "user"', code="invalid_type")
    if isinstance(content, list):
        parts = (_text_part(part, f"{param}.content[{index}]") for index, part in enumerate(content))
        content = message["content"] = "".join(parts)
    if not isinstance(content, str) and not (content is None and "tool_calls" in message):
        refuse(f"{param}.content", f"{param}.content: {json_type(content)}; expected a string", code="invalid_type")
    for key in _TEXT_KEYS:
        if not isinstance(message.get(key, ""), str):
            refuse(f"{param}.{key}", f"{param}.{key}: {show(message[key])}; expected a string", code="invalid_type")
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], f"{param}.tool_calls")
    return message


def _tool_calls(value: Any, param: str) -> list[dict[str, Any]]:
    """Templates expect arguments as objects; OpenAI writes them as JSON in a string."""
    if not isinstance(value, list):
        refuse(param, f"{param}: {json_type(value)}; expected an array", code="invalid_type")
    calls = []
    for index, call in enumerate(value):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            refuse(f"{param}[{index}]", f"{param}[{index}]: {show(call)}; expected {_TOOL_FORM}", code="invalid_type")
        arguments = function.get("arguments", {})
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            where = f"{param}[{index}].function.arguments"
            refuse(where, f"{where}: {show(function['arguments'])}; expected a JSON object", code="invalid_type")
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return calls


def _text_part(part: Any, param: str) -> str:
    if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
        kind = part.get("type") if isinstance(part, dict) else part
        refuse(param, f'{param}: {show(kind)}; expected {{"type": "text", "text": ...}}', code="unsupported_parameter")
    return str(part["text"])
