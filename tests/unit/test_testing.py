"""The stand-in for a model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headrace.engine.interface import LanguageModel
from headrace.engine.outputs import RequestOutput
from headrace.engine.requests import GenerationRequest
from headrace.errors import RequestError
from headrace.sampling.parameters import SamplingParams
from headrace.testing import ByteTokenizer, EchoLLM


def request(number: int, prompt: str, **params: object) -> GenerationRequest:
    return GenerationRequest(
        request_id=number,
        prompt=prompt,
        prompt_token_ids=tuple(prompt.encode()),
        params=SamplingParams(**params),  # type: ignore[arg-type]
    )


def answers(*requests: GenerationRequest, model: EchoLLM | None = None) -> list[RequestOutput]:
    return list((model or EchoLLM()).run(requests))


def test_it_is_a_language_model() -> None:
    model: LanguageModel = EchoLLM()
    assert model.description.startswith("echo")


def test_it_needs_no_torch() -> None:
    program = "import sys, headrace.testing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_shorter_answers_finish_first() -> None:
    outputs = answers(request(0, "long text"), request(1, "a"), request(2, "bcd"))
    assert [(o.request_id, o.outputs[0].text) for o in outputs] == [(1, "a"), (2, "bcd"), (0, "long text")]


@pytest.mark.parametrize(
    ("params", "text", "num_tokens", "reason"),
    [
        ({}, "hello world", 12, "stop"),
        ({"max_tokens": 4}, "hell", 4, "length"),
        ({"stop": ["o w", "ld"]}, "hell", 7, "stop"),
        ({"max_tokens": 4, "stop": ["o"]}, "hell", 4, "length"),
    ],
)
def test_answers_end_where_they_should(params: dict[str, object], text: str, num_tokens: int, reason: str) -> None:
    (output,) = answers(request(0, "hello world", **params))
    answer = output.outputs[0]
    assert (answer.text, len(answer.token_ids), answer.finish_reason) == (text, num_tokens, reason)


def test_samples_are_numbered() -> None:
    (output,) = answers(request(0, "hi", n=3))
    assert [answer.index for answer in output.outputs] == [0, 1, 2]


def test_what_does_not_fit_comes_back_with_an_error() -> None:
    output, fits = answers(request(0, "x" * 9), request(1, "y"), model=EchoLLM(max_model_len=9))
    assert output.error is not None and output.error.code == "context_length_exceeded" and output.outputs == ()
    assert fits.error is None


def test_time_is_counted_in_steps() -> None:
    slow, quick = answers(request(0, "abc"), request(1, "d"), model=EchoLLM(max_num_seqs=1))
    assert slow.metrics is not None and quick.metrics is not None
    assert (slow.metrics.ttft_seconds, slow.metrics.tpot_seconds) == (0.001, 0.001)
    assert quick.metrics.ttft_seconds == 0.001
    assert slow.outputs[0].token_seconds == pytest.approx([0.001, 0.002, 0.003, 0.004])
    assert quick.metrics.arrived_seconds == pytest.approx(0.004)
    assert quick.outputs[0].token_seconds == pytest.approx([0.005, 0.006])


def test_a_stream_adds_up_to_the_answer() -> None:
    pieces = list(EchoLLM().stream("héllo", SamplingParams(max_tokens=5)))
    assert "".join(piece.text for piece in pieces) == "héll"
    assert [piece.finish_reason for piece in pieces] == [None] * 4 + ["length"]


def test_the_tokenizer_gives_back_what_it_was_given() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("naïve 漢字"), True) == "naïve 漢字"
    conversation = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(conversation, True) == "userhiassistant"
    with pytest.raises(RequestError):
        ByteTokenizer(has_chat_template=False).encode_chat([])
