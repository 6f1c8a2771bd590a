"""The fields of a request in OpenAI's and vLLM's spelling: what is asked, and how to sample.

Rows of a job and requests to a server are read here, so that both understand the same words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from headrace.jobs.chat_fields import CHAT_KEYS, parse_chat_options, parse_messages
from headrace.jobs.fields import check_keys, refuse, show
from headrace.jobs.json_lines import json_type
from headrace.jobs.structured_fields import STRUCTURE_KEYS, structure_asked
from headrace.models.chat import ChatMessage, ChatOptions
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
_SPECIAL = "add_special_tokens"
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
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFields:
    """One request as it was written, checked but not tokenized. Exactly one of the three kinds of prompt is set.

    Attributes:
        prompt: text that goes to the model as it is.
        prompt_token_ids: tokens that go to the model as they are.
        messages: a conversation for the chat template.
        chat: what the template is told beside the messages.
        add_special_tokens: whether `prompt` gets the special tokens that the model expects around it.
        params: the request's sampling keys over the caller's defaults.
        model: the model that the request names; it selects nothing.
    """

    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    messages: tuple[ChatMessage, ...] | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    add_special_tokens: bool = True
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
            refuse(key, f"{key}: {show(given[key])} is not supported here; {expected}", code="unsupported_parameter")
    prompts = [key for key in _PROMPT_KEYS[kind] if key in given]
    if len(prompts) != 1:
        wanted = " or ".join(repr(key) for key in _PROMPT_KEYS[kind])
        if prompts:
            refuse("messages", "'prompt' and 'messages' are both given; expected one of them", code="invalid_value")
        refuse(_PROMPT_KEYS[kind][0], f"{wanted} is missing", code="missing_required_parameter")
    model = given.get("model")
    if model is not None and not isinstance(model, str):
        refuse("model", f"model: {show(model)}; expected a string", code="invalid_type")
    params = _sampling_params(given, defaults)
    chat, add_special_tokens = parse_chat_options(given), given.get(_SPECIAL, True)
    if prompts == ["messages"]:
        _belongs_to("prompt", add_special_tokens is not True, _SPECIAL)
        return RequestFields(messages=parse_messages(given["messages"]), chat=chat, params=params, model=model)
    _belongs_to("messages", chat != ChatOptions(), next((key for key in CHAT_KEYS if key in given), ""))
    prompt = given["prompt"]
    if not isinstance(add_special_tokens, bool):
        refuse(_SPECIAL, f"{_SPECIAL}: {show(add_special_tokens)}; expected true or false", code="invalid_type")
    if isinstance(prompt, str):
        return RequestFields(prompt=prompt, add_special_tokens=add_special_tokens, params=params, model=model)
    return RequestFields(prompt_token_ids=_token_ids(prompt), params=params, model=model)


def _belongs_to(prompt: str, is_set: bool, key: str) -> None:
    if is_set:
        refuse(key, f"{key} is for requests with {prompt!r}; leave it out", code="invalid_value")


def _known_keys(kind: RequestKind) -> tuple[str, ...]:
    return (
        *_PROMPT_KEYS[kind],
        *_LENGTH_KEYS,
        *_LOGPROB_KEYS,
        *_SAMPLING_KEYS,
        *STRUCTURE_KEYS,
        *_LABEL_KEYS,
        *_NEUTRAL_VALUES,
        *CHAT_KEYS,
        _SPECIAL,
    )


def _sampling_params(given: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    changes = {key: given[key] for key in _SAMPLING_KEYS if key in given}
    lengths = [key for key in _LENGTH_KEYS if key in given]
    if len(lengths) == 2 and given[lengths[0]] != given[lengths[1]]:
        refuse(
            "max_tokens",
            f"max_tokens: {show(given['max_tokens'])} and max_completion_tokens: "
            f"{show(given['max_completion_tokens'])} contradict each other; give one of them",
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
        refuse("top_logprobs", f"top_logprobs: {show(top)} needs logprobs: true beside it", code="invalid_value")
    return None if logprobs is False else logprobs


def _token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        refuse("prompt", f"prompt: {json_type(value)}; expected a string or an array of token ids", code="invalid_type")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            hint = "; one row holds one prompt" if isinstance(item, str | list) else ""
            refuse(
                "prompt",
                f"prompt: the array holds {show(item)}; expected token ids (whole numbers from 0){hint}",
                code="invalid_type",
            )
    if not value:
        refuse("prompt", "prompt: an empty array; expected at least one token id", code="invalid_value")
    return tuple(value)


def _same(value: object, neutral: object) -> bool:
    """Equality in which `false` is not 0."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
