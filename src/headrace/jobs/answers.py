"""Lines of the output: a row's answer or its error, in the shape in which the row was asked.

No time and no random number goes into a line, so the same job writes the same bytes again. `docs/rows.md` is this file
in prose.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from headrace.engine.outputs import CompletionOutput, RequestOutput
from headrace.errors import RequestError
from headrace.jobs.rows import RowKey

if TYPE_CHECKING:
    from headrace.sampling.tokens import TokenLogprobs

# JSON has no minus infinity; vLLM writes this number for it too.
_LOWEST_LOGPROB = -9999.0


class TokenText(Protocol):
    """The part of a tokenizer that writes log-probabilities."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool, /) -> str:
        """Returns the text of the tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerWriter:
    """Makes output lines.

    Attributes:
        model_name: what `model` says in batch answers.
        tokens: gives the text of single tokens, where rows ask for log-probabilities.
    """

    model_name: str
    tokens: TokenText

    def answer_line(self, key: RowKey, output: RequestOutput) -> bytes:
        """Returns the line of a row that was answered, its newline included."""
        usage = _usage(output)
        if key.shape == "short":
            answer = self._short_answer(output.outputs)
            if output.prompt_logprobs is not None:
                answer["prompt_logprobs"] = self._short_logprobs(output.prompt_logprobs)
            return _line({"id": key.row_id, **answer, "usage": usage})
        is_chat = key.shape == "batch_chat"
        body: dict[str, Any] = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{key.digest}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": 0,
            "model": self.model_name,
            "choices": [self._chat_choice(o) if is_chat else self._text_choice(o) for o in output.outputs],
            "usage": usage,
        }
        if output.prompt_logprobs is not None:
            said = self._prompt_logprobs(output.prompt_logprobs)
            for holder in [body] if is_chat else body["choices"]:
                holder["prompt_logprobs"] = said
        return _line(_batch_answer(key, 200, body, error=None))

    def _short_answer(self, outputs: Sequence[CompletionOutput]) -> dict[str, Any]:
        if len(outputs) == 1:
            answer: dict[str, Any] = {"text": outputs[0].text, "finish_reason": outputs[0].finish_reason}
            if outputs[0].logprobs is not None:
                answer["logprobs"] = self._short_logprobs(outputs[0].logprobs)
            return answer
        answer = {"texts": [o.text for o in outputs], "finish_reasons": [o.finish_reason for o in outputs]}
        if any(o.logprobs is not None for o in outputs):
            answer["logprobs"] = [self._short_logprobs(o.logprobs or ()) for o in outputs]
        return answer

    def _short_logprobs(self, logprobs: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
        return [None if entry is None else self._short_entry(entry) for entry in logprobs]

    def _short_entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        return {
            **self._short_token(entry.token_id, entry.logprob),
            "rank": entry.rank,
            "top": [self._short_token(token_id, logprob) for token_id, logprob in entry.top],
        }

    def _prompt_logprobs(self, logprobs: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
        """As vLLM has them: of each token but the first, by id, the token itself and the likeliest ones."""
        return [None if entry is None else self._prompt_entry(entry) for entry in logprobs]

    def _prompt_entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top, 1)]
        return {
            str(token_id): {"logprob": _finite(logprob), "rank": rank, "decoded_token": self._text(token_id)}
            for token_id, logprob, rank in [*ranked, (entry.token_id, entry.logprob, entry.rank)]
        }

    def _short_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token_id), "token_id": token_id, "logprob": _finite(logprob)}

    def _chat_choice(self, output: CompletionOutput) -> dict[str, Any]:
        logprobs = None
        if output.logprobs is not None:
            content = [
                {
                    **self._chat_token(entry.token_id, entry.logprob),
                    "top_logprobs": [self._chat_token(token_id, logprob) for token_id, logprob in entry.top],
                }
                for entry in output.logprobs
            ]
            logprobs = {"content": content, "refusal": None}
        return {
            "index": output.index,
            "message": {"role": "assistant", "content": output.text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }

    def _chat_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._text(token_id)
        # A token that ends inside a character has no text of its own, so its bytes are not known from it either.
        known = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": _finite(logprob), "bytes": known}

    def _text_choice(self, output: CompletionOutput) -> dict[str, Any]:
        return {
            "index": output.index,
            "text": output.text,
            "logprobs": None if output.logprobs is None else self._text_logprobs(output.logprobs),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }

    def _text_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        tokens = [self._text(entry.token_id) for entry in logprobs]
        offsets = [0]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(entry.logprob) for entry in logprobs],
            "top_logprobs": [{self._text(i): _finite(value) for i, value in entry.top} for entry in logprobs],
            "text_offset": offsets if tokens else [],
        }

    def _text(self, token_id: int) -> str:
        return self.tokens.decode([token_id], False)


def error_line(key: RowKey, error: RequestError) -> bytes:
    """Returns the line of a row that could not be answered, its newline included."""
    fault = {"code": error.code, "message": str(error), "param": error.param, "line": key.line}
    if key.shape == "short":
        return _line({"id": key.row_id, "error": fault})
    body = {
        "error": {
            "message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.code,
        }
    }  # fmt: skip
    return _line(_batch_answer(key, 400, body, error=fault))


def _batch_answer(
    key: RowKey, status_code: int, body: dict[str, Any], *, error: dict[str, Any] | None
) -> dict[str, Any]:
    response = {"status_code": status_code, "request_id": f"req_{key.digest}", "body": body}
    return {"id": f"batch_req_{key.digest}", "custom_id": key.row_id, "response": response, "error": error}


def _usage(output: RequestOutput) -> dict[str, int]:
    prompt = len(output.prompt_token_ids)
    completion = sum(len(o.token_ids) for o in output.outputs)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST_LOGPROB)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n"
