"""A conversation and how the model's template is to write it. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ChatMessage = dict[str, Any]
"""One turn of a conversation: `role`, `content`, and what else the template is to get, like `tool_calls`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatOptions:
    """What a chat template is told beside the messages. Names and meanings are those of transformers and vLLM.

    Attributes:
        tools: functions that the model may call, in OpenAI's form.
        add_generation_prompt: end with what begins the assistant's answer.
        continue_final_message: end in the middle of the last message, so that the answer continues it.
        template_kwargs: further variables of the template, like `enable_thinking`.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
