"""What a row asks of a model, in tokens."""

from __future__ import annotations

from dataclasses import replace

from headrace.engine.interface import LanguageModel
from headrace.engine.requests import GenerationRequest
from headrace.errors import RequestError
from headrace.jobs.rows import Row

DEFAULT_MAX_TOKENS = 1024


def generation_request(row: Row, model: LanguageModel) -> GenerationRequest:
    """Returns the row's request, its number the row's index.

    Raises:
        RequestError: it has no tokens, or too many.
    """
    asked, tokenizer = row.request, model.tokenizer
    if asked.messages is not None:
        param, token_ids = "messages", tokenizer.encode_chat(list(asked.messages), asked.chat)
    elif asked.prompt is not None:
        param, token_ids = "prompt", tokenizer.encode(asked.prompt, asked.add_special_tokens)
    else:
        param, token_ids = "prompt", list(asked.prompt_token_ids or ())
    context = model.max_model_len
    if not token_ids:
        raise RequestError(f"{param}: it has no tokens; expected at least one", code="invalid_value", param=param)
    if len(token_ids) >= context:
        raise RequestError(
            f"{param}: {len(token_ids)} tokens; the context holds {context}, so at most {context - 1} leave room "
            "for an answer; shorten it",
            code="context_length_exceeded",
            param=param,
        )
    params = asked.params
    if params.max_tokens is None:
        params = replace(params, max_tokens=max(DEFAULT_MAX_TOKENS, params.min_tokens))
    return GenerationRequest(
        request_id=row.key.index, prompt=asked.prompt, prompt_token_ids=tuple(token_ids), params=params
    )
