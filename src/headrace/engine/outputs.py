"""What the engine gives back: finished requests, and pieces of one that is still running. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from headrace.errors import RequestError
    from headrace.sampling.tokens import TokenLogprobs

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionOutput:
    """One answer to a request.

    Attributes:
        index: which of the request's `n` answers this is, from 0.
        text: the answer without the stop string that ended it.
        token_ids: every generated token, the one that ended the answer included.
        finish_reason: `stop` after an end token or a stop string, `length` at `max_tokens` or the context's end;
            None when the request was cancelled.
        stop_reason: the stop string or the `stop_token_ids` entry that ended it; None for the model's own end token.
        logprobs: one entry per token of `token_ids`, where they were asked for.
        token_seconds: when each token came, on the clock of `time.perf_counter`; those of one sweep come at one time.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    token_seconds: Sequence[float] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestMetrics:
    """When things happened to a request; differences of one monotonic clock.

    Attributes:
        arrived_seconds: when the request came, on the clock of `time.perf_counter`.
        ttft_seconds: from the request's arrival at the engine to its first token.
        tpot_seconds: mean time per token after the first; None for answers of one token.
        queued_seconds: from its arrival to its first sweep.
        num_cached_tokens: prompt tokens whose KV was already there.
        num_preemptions: how often one of its answers had to give its KV up to older rows.
        num_moved_down: how often that KV was kept below then, and not computed again.
    """

    ttft_seconds: float
    tpot_seconds: float | None
    queued_seconds: float
    arrived_seconds: float = 0.0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_moved_down: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestOutput:
    """A finished request: its answers, or the error that it ended with.

    Attributes:
        outputs: the `n` answers in order; empty where `error` is set.
        prompt_logprobs: one entry per token of the prompt, None for the first, where they were asked for.
        metrics: None where the request never ran.
    """

    request_id: int
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    metrics: RequestMetrics | None = None
    error: RequestError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputPiece:
    """The next part of an answer that is being generated.

    Attributes:
        text: what to append; may be empty while a character or a possible stop string is incomplete.
        token_ids: the tokens since the piece before.
        finish_reason: set on the last piece.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
