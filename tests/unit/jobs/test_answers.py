"""Output lines, byte for byte."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from headrace.engine.outputs import CompletionOutput, RequestOutput
from headrace.errors import RequestError
from headrace.jobs.answers import AnswerWriter, error_line
from headrace.jobs.rows import RowKey, RowShape
from headrace.sampling.tokens import TokenLogprobs
from headrace.testing import ByteTokenizer

WRITER = AnswerWriter(model_name="m", tokens=ByteTokenizer())
LOGPROBS = (
    TokenLogprobs(token_id=104, logprob=-0.5, rank=1, top=((104, -0.5), (105, -1.0))),
    TokenLogprobs(token_id=0xC3, logprob=-math.inf, rank=2),
)


def key(shape: RowShape, row_id: str | int | None = "r") -> RowKey:
    return RowKey(index=0, line=1, row_id=row_id, shape=shape, digest="0123")


def output(*texts: str, logprobs: tuple[TokenLogprobs, ...] | None = None) -> RequestOutput:
    return RequestOutput(
        request_id=0,
        prompt="p",
        prompt_token_ids=(1, 2, 3),
        outputs=tuple(
            CompletionOutput(index=i, text=text, token_ids=(1, 2), finish_reason="stop", logprobs=logprobs)
            for i, text in enumerate(texts)
        ),
    )


def answer(shape: RowShape, what: RequestOutput) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(WRITER.answer_line(key(shape), what))
    return value


def test_a_short_answer() -> None:
    assert (
        WRITER.answer_line(key("short"), output("é\n"))
        == (
            '{"id": "r", "text": "é\\n", "finish_reason": "stop", '
            '"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}\n'
        ).encode()
    )


def test_several_short_answers() -> None:
    got = answer("short", output("a", "b"))
    assert (got["texts"], got["finish_reasons"], got["usage"]["completion_tokens"]) == (["a", "b"], ["stop"] * 2, 4)


def test_a_batch_chat_answer_has_openai_s_shape() -> None:
    assert answer("batch_chat", output("hi")) == {
        "id": "batch_req_0123",
        "custom_id": "r",
        "response": {
            "status_code": 200,
            "request_id": "req_0123",
            "body": {
                "id": "chatcmpl-0123",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "hi", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                        "stop_reason": None,
                    }
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            },
        },
        "error": None,
    }


def test_a_batch_completion_answer_has_openai_s_shape() -> None:
    body = answer("batch_completion", output("a", "b"))["response"]["body"]
    assert (body["id"], body["object"]) == ("cmpl-0123", "text_completion")
    assert [(choice["index"], choice["text"], choice["logprobs"]) for choice in body["choices"]] == [
        (0, "a", None),
        (1, "b", None),
    ]


def test_log_probabilities_in_each_shape() -> None:
    what = output("hé", logprobs=LOGPROBS)
    assert answer("short", what)["logprobs"] == [
        {
            "token": "h",
            "token_id": 104,
            "logprob": -0.5,
            "rank": 1,
            "top": [
                {"token": "h", "token_id": 104, "logprob": -0.5},
                {"token": "i", "token_id": 105, "logprob": -1.0},
            ],
        },
        {"token": "\ufffd", "token_id": 0xC3, "logprob": -9999.0, "rank": 2, "top": []},
    ]
    chat = answer("batch_chat", what)["response"]["body"]["choices"][0]["logprobs"]
    assert [(token["token"], token["bytes"]) for token in chat["content"]] == [("h", [104]), ("\ufffd", None)]
    assert chat["content"][0]["top_logprobs"][1] == {"token": "i", "logprob": -1.0, "bytes": [105]}
    assert answer("batch_completion", what)["response"]["body"]["choices"][0]["logprobs"] == {
        "tokens": ["h", "\ufffd"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"h": -0.5, "i": -1.0}, {}],
        "text_offset": [0, 1],
    }


ERROR = RequestError("no such thing", code="unknown_parameter", param="thing")


def test_a_short_error() -> None:
    assert json.loads(error_line(key("short", None), ERROR)) == {
        "id": None,
        "error": {"code": "unknown_parameter", "message": "no such thing", "param": "thing", "line": 1},
    }


@pytest.mark.parametrize("shape", ["batch_chat", "batch_completion"])
def test_a_batch_error_is_found_by_its_error_and_by_its_status(shape: RowShape) -> None:
    got = json.loads(error_line(key(shape), ERROR))
    assert got["error"] == {"code": "unknown_parameter", "message": "no such thing", "param": "thing", "line": 1}
    assert got["response"]["status_code"] == 400
    assert got["response"]["body"]["error"] == {
        "message": "no such thing",
        "type": "invalid_request_error",
        "param": "thing",
        "code": "unknown_parameter",
    }
