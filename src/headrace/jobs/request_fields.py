"""The fields of a request in OpenAI's and vLLM's spelling: what is asked, and how to sample.

Rows of a job and requests to a server are read here, so that both understand the same words.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from headrace.engine.requests import ChatMessage
from headrace.errors import RequestError
from headrace.jobs.json_lines import json_type
from headrace.jobs.structured_fields import STRUCTURE_KEYS, structure_asked
from headrace.sampling.parameters import SamplingParams

RequestKind = Literal["chat", "completion", "either"]

_PROMPT_KEYS: Mapping[RequestKind, tuple[str, ...]] = {
    "chat": ("messages",),
    "completion": ("prompt",),
    "either": ("prompt", "messages"),
}
_SAMPLING_KEYS = (
    "n", "best_of", "prompt_logprobs", "min_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "bad_words", "stop",
    "stop_token_ids", "ignore_eos", "seed", "skip_special_tokens",
)  # fmt: skip
_LENGTH_KEYS = ("max_tokens", "max_completion_tokens")
_LOGPROB_KEYS = ("logprobs", "top_logprobs")
# They say who asks, not what to answer.
_LABEL_KEYS = ("model", "user", "metadata")
# Known elsewhere and not here (yet): accepted at the value that changes nothing, refused at any other.
_NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "num_beams": (1,),
    "use_beam_search": (False,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFields:
    """One request as it was written, checked but not tokenized. Exactly one of the three kinds of prompt is set.

    Attributes:
        prompt: text that goes to the model as it is.
        prompt_token_ids: tokens that go to the model as they are.
        messages: a conversation for the chat template.
        params: the request's sampling keys over the caller's defaults.
        model: the model that the request names; it selects nothing.
    """

    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    messages: tuple[ChatMessage, ...] | None = None
    params: SamplingParams
    model: str | None = None


def parse_request(fields: Mapping[str, Any], *, kind: RequestKind, defaults: SamplingParams) -> RequestFields:
    """Returns what `fields` asks. A key whose value is null counts as left out.

    Raises:
        RequestError: a key is unknown (with the nearest known one), missing, or has a value that cannot be; `param`
            names it.
    """
    check_keys(fields, known=_known_keys(kind), where="a request")
    given = {key: value for key, value in fields.items() if value is not None}
    for key, neutral in _NEUTRAL_VALUES.items():
        if key in given and not any(_same(given[key], value) for value in neutral):
            expected = f"leave it out or {json.dumps(neutral[0])}" if neutral else "leave it out"
            refuse(key, f"{key}: {_show(given[key])} is not supported here; {expected}", code="unsupported_parameter")
    prompts = [key for key in _PROMPT_KEYS[kind] if key in given]
    if len(prompts) != 1:
        wanted = " or ".join(repr(key) for key in _PROMPT_KEYS[kind])
        if prompts:
            refuse("messages", "'prompt' and 'messages' are both given; expected one of them", code="invalid_value")
        refuse(_PROMPT_KEYS[kind][0], f"{wanted} is missing", code="missing_required_parameter")
    model = given.get("model")
    if model is not None and not isinstance(model, str):
        refuse("model", f"model: {_show(model)}; expected a string", code="invalid_type")
    params = _sampling_params(given, defaults)
    if prompts == ["messages"]:
        return RequestFields(messages=_messages(given["messages"]), params=params, model=model)
    prompt = given["prompt"]
    if isinstance(prompt, str):
        return RequestFields(prompt=prompt, params=params, model=model)
    return RequestFields(prompt_token_ids=_token_ids(prompt), params=params, model=model)


def check_keys(fields: Mapping[str, Any], *, known: Collection[str], where: str) -> None:
    """Refuses keys that are not `known`, all at once.

    Raises:
        RequestError: code `unknown_parameter`; `param` is the first of them.
    """
    unknown = [key for key in fields if key not in known]
    if unknown:
        named = ", ".join(_with_nearest(key, known) for key in unknown)
        plural = "s" if len(unknown) > 1 else ""
        refuse(unknown[0], f"unknown key{plural} in {where}: {named}", code="unknown_parameter")


def refuse(param: str, message: str, *, code: str) -> NoReturn:
    """Raises the `RequestError` of one field."""
    raise RequestError(message, code=code, param=param)


def _known_keys(kind: RequestKind) -> tuple[str, ...]:
    return (
        *_PROMPT_KEYS[kind],
        *_LENGTH_KEYS,
        *_LOGPROB_KEYS,
        *_SAMPLING_KEYS,
        *STRUCTURE_KEYS,
        *_LABEL_KEYS,
        *_NEUTRAL_VALUES,
    )


def _with_nearest(key: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    return f"{key!r} (did you mean {nearest[0]!r}?)" if nearest else repr(key)


def _sampling_params(given: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    changes = {key: given[key] for key in _SAMPLING_KEYS if key in given}
    lengths = [key for key in _LENGTH_KEYS if key in given]
    if len(lengths) == 2 and given[lengths[0]] != given[lengths[1]]:
        refuse(
            "max_tokens",
            f"max_tokens: {_show(given['max_tokens'])} and max_completion_tokens: "
            f"{_show(given['max_completion_tokens'])} contradict each other; give one of them",
            code="invalid_value",
        )
    if lengths:
        changes["max_tokens"] = given[lengths[0]]
    if any(key in given for key in _LOGPROB_KEYS):
        changes["logprobs"] = _logprobs(given)
    changes.update(structure_asked(given))
    try:
        return replace(defaults, **changes) if changes else defaults
    except OverflowError:
        refuse(next(iter(changes)), "a sampling key holds a number of hundreds of digits", code="invalid_value")


def _logprobs(given: Mapping[str, Any]) -> int | None:
    """The number of alternatives per token: `logprobs: 5`, or `logprobs: true` beside `top_logprobs: 5`."""
    logprobs, top = given.get("logprobs"), given.get("top_logprobs")
    if logprobs is True:
        return 0 if top is None else top
    if top is not None and not (top == 0 and logprobs is False):
        refuse("top_logprobs", f"top_logprobs: {_show(top)} needs logprobs: true beside it", code="invalid_value")
    return None if logprobs is False else logprobs


def _messages(value: Any) -> tuple[ChatMessage, ...]:
    if not isinstance(value, list) or not value:
        what = "an empty array" if value == [] else json_type(value)
        refuse("messages", f"messages: {what}; expected an array of at least one message", code="invalid_type")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(value: Any, param: str) -> ChatMessage:
    if not isinstance(value, dict):
        refuse(param, f'{param}: {json_type(value)}; expected {{"role": ..., "content": ...}}', code="invalid_type")
    check_keys(value, known=("role", "content", "name"), where=param)
    role, content, name = value.get("role"), value.get("content"), value.get("name")
    if not isinstance(role, str) or not role:
        refuse(f"{param}.role", f'{param}.role: {_show(role)}; expected a string like "user"', code="invalid_type")
    if isinstance(content, list):
        content = "".join(_text_part(part, f"{param}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        refuse(f"{param}.content", f"{param}.content: {json_type(content)}; expected a string", code="invalid_type")
    message = {"role": role, "content": content}
    if name is not None:
        if not isinstance(name, str):
            refuse(f"{param}.name", f"{param}.name: {_show(name)}; expected a string", code="invalid_type")
        message["name"] = name
    return message


def _text_part(part: Any, param: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    refuse(param, f'{param}: {_show(kind)}; expected {{"type": "text", "text": ...}}', code="unsupported_parameter")


def _token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        refuse("prompt", f"prompt: {json_type(value)}; expected a string or an array of token ids", code="invalid_type")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            hint = "; one row holds one prompt" if isinstance(item, str | list) else ""
            refuse(
                "prompt",
                f"prompt: the array holds {_show(item)}; expected token ids (whole numbers from 0){hint}",
                code="invalid_type",
            )
    if not value:
        refuse("prompt", "prompt: an empty array; expected at least one token id", code="invalid_value")
    return tuple(value)


def _same(value: object, neutral: object) -> bool:
    """Equality in which `false` is not 0."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _show(value: object) -> str:
    """`value` as JSON, shortened to what fits a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
