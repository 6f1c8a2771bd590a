"""Stand-ins for tests of code that uses Headrace: no weights, no torch, the same answer every time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

from headrace.engine.outputs import CompletionOutput, FinishReason, OutputPiece, RequestMetrics, RequestOutput
from headrace.engine.requests import GenerationRequest
from headrace.errors import RequestError
from headrace.models.chat import ChatMessage, ChatOptions
from headrace.sampling.parameters import GenerationDefaults, ResolvedSampling, SamplingParams
from headrace.sampling.tokens import TokenLogprobs

_END, _TURN, _CONTENT = 256, 257, 258
_STEP_SECONDS = 0.001


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteTokenizer:
    """A tokenizer whose tokens are the bytes of the text, and three more that mark the turns of a conversation."""

    has_chat_template: bool = True

    def encode(self, text: str, add_special_tokens: bool = True, /) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[ChatMessage], options: ChatOptions | None = None, /) -> list[int]:
        if options is not None and options != ChatOptions():
            raise RequestError("messages are all that is encoded here", code="tools_not_supported", param="messages")
        if not self.has_chat_template:
            raise RequestError("the model has no chat template", code="no_chat_template", param="messages")
        ids: list[int] = []
        for message in messages:
            ids += [_TURN, *message["role"].encode(), _CONTENT, *message.get("content", "").encode(), _END]
        return [*ids, _TURN, *b"assistant", _CONTENT]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True, /) -> str:
        special = "" if skip_special_tokens else "\ufffc"
        parts: list[str] = []
        run = bytearray()
        for token_id in (*token_ids, _END):
            if token_id < 256:
                run.append(token_id)
                continue
            parts += [run.decode(errors="replace"), special]
            run.clear()
        return "".join(parts[:-1])


@dataclass(slots=True)
class _Running:
    request: GenerationRequest
    sampling: ResolvedSampling
    answer: CompletionOutput
    arrived: int
    num_done: int = 0


@dataclass(kw_only=True)
class EchoLLM:
    """Answers every prompt with the prompt, and every conversation with its last message, one token per step.

    It keeps what `LLM` promises to its callers: answers come in the order in which they finish, requests are pulled
    as there is room, `max_tokens`, stop strings and the context end an answer, a request that does not fit comes back
    with an error. Time is counted in steps of a millisecond.

    Attributes:
        max_num_seqs: requests that run at once.
        on_step: called before every step with its number; what it raises, `run` raises.
        closed: whether `close` was called.
    """

    model_name: str = "echo"
    max_model_len: int = 4096
    max_num_seqs: int = 4
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    on_step: Callable[[int], None] = lambda _: None
    closed: bool = False

    @property
    def description(self) -> str:
        return f"{self.model_name}: bytes in, the same bytes out"

    def run(self, requests: Iterable[GenerationRequest], /) -> Generator[RequestOutput, None, None]:
        """Yields outputs in the order in which they finish, those of one step in the order of their requests."""
        waiting = iter(requests)
        running: list[_Running] = []
        step = 0
        while True:
            while len(running) < self.max_num_seqs:
                if (request := next(waiting, None)) is None:
                    break
                try:
                    running.append(self._begin(request, step))
                except RequestError as error:
                    yield _output(request, error=error)
            if not running:
                return
            self.on_step(step)
            step += 1
            for row in running:
                row.num_done += 1
            finished = [row for row in running if row.num_done >= len(row.answer.token_ids)]
            running = [row for row in running if row.num_done < len(row.answer.token_ids)]
            for row in finished:
                yield self._finish(row)

    def stream(self, prompt: str, params: SamplingParams | None = None, /) -> Generator[OutputPiece, None, None]:
        return self._stream(self.tokenizer.encode(prompt), params or SamplingParams())

    def stream_chat(
        self, messages: Sequence[ChatMessage], params: SamplingParams | None = None, /
    ) -> Generator[OutputPiece, None, None]:
        return self._stream(self.tokenizer.encode_chat(messages), params or SamplingParams())

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> EchoLLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stream(self, token_ids: list[int], params: SamplingParams) -> Generator[OutputPiece, None, None]:
        row = self._begin(GenerationRequest(request_id=0, prompt_token_ids=tuple(token_ids), params=params), 0)
        shown = 0
        last = len(row.answer.token_ids) - 1
        for index, token_id in enumerate(row.answer.token_ids):
            self.on_step(index)
            end = len(row.answer.text) if index == last else min(index + 1, len(row.answer.text))
            text, shown = row.answer.text[shown:end], max(shown, end)
            reason = row.answer.finish_reason if index == last else None
            yield OutputPiece(text=text, token_ids=(token_id,), finish_reason=reason)

    def _begin(self, request: GenerationRequest, step: int) -> _Running:
        room = self.max_model_len - len(request.prompt_token_ids)
        sampling = request.params.resolve(self.defaults, default_max_tokens=room, room=room)
        return _Running(request=request, sampling=sampling, answer=self._answer(request, sampling), arrived=step)

    def _answer(self, request: GenerationRequest, sampling: ResolvedSampling) -> CompletionOutput:
        ids = [*_last_turn(request.prompt_token_ids), _END]
        reason: FinishReason = "stop"
        stop_reason: str | None = None
        if len(ids) > sampling.max_tokens:
            ids, reason = ids[: sampling.max_tokens], "length"
        text = self.tokenizer.decode(ids, True)
        matches = [(text.find(stop), stop) for stop in sampling.stop if stop in text]
        if matches:
            at, stop_reason = min(matches)
            ids = ids[: len((text[:at] + stop_reason).encode())]
            text, reason = text[:at], "stop"
        logprobs = None
        if sampling.logprobs is not None:
            num_top = min(1, sampling.logprobs)
            logprobs = tuple(TokenLogprobs(token_id=i, logprob=0.0, rank=1, top=((i, 0.0),) * num_top) for i in ids)
        return CompletionOutput(
            index=0, text=text, token_ids=tuple(ids), finish_reason=reason, stop_reason=stop_reason, logprobs=logprobs
        )

    def _finish(self, row: _Running) -> RequestOutput:
        num_tokens = len(row.answer.token_ids)
        metrics = RequestMetrics(
            arrived_seconds=row.arrived * _STEP_SECONDS,
            ttft_seconds=_STEP_SECONDS,
            tpot_seconds=_STEP_SECONDS if num_tokens > 1 else None,
            queued_seconds=0.0,
        )
        times = tuple(index * _STEP_SECONDS for index in range(row.arrived + 1, row.arrived + 1 + num_tokens))
        answers = tuple(replace(row.answer, index=index, token_seconds=times) for index in range(row.sampling.n))
        return _output(row.request, answers=answers, metrics=metrics)


def _last_turn(token_ids: Sequence[int]) -> list[int]:
    """The content of the last finished turn of a conversation, or a plain prompt as it is."""
    if _END not in token_ids:
        return [i for i in token_ids if i < 256]
    end = len(token_ids) - 1 - list(reversed(token_ids)).index(_END)
    start = end - 1 - list(reversed(token_ids[:end])).index(_CONTENT)
    return list(token_ids[start + 1 : end])


def _output(
    request: GenerationRequest,
    *,
    answers: tuple[CompletionOutput, ...] = (),
    metrics: RequestMetrics | None = None,
    error: RequestError | None = None,
) -> RequestOutput:
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=request.prompt_token_ids,
        outputs=answers,
        metrics=metrics,
        error=error,
    )
