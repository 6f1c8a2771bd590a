"""One answer while it grows: tokens in, text out, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence

from headrace.engine.outputs import CompletionOutput, FinishReason, OutputPiece
from headrace.sampling.detokenizer import IncrementalDetokenizer, TokenDecoder
from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.sampler import SamplingRow
from headrace.sampling.stopping import StopStrings
from headrace.sampling.tokens import SampledToken, TokenLogprobs


class Answer:
    """One sample of one request.

    Attributes:
        finish_reason: None while it grows.
        first_token_seconds, last_token_seconds: on the clock of `time.perf_counter`; None before the first token.
    """

    def __init__(
        self,
        *,
        index: int,
        sampling: ResolvedSampling,
        seed: int,
        decoder: TokenDecoder,
        only_appends: bool = True,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        self.index = index
        self.sampling = sampling
        self.finish_reason: FinishReason | None = None
        self.first_token_seconds: float | None = None
        self.last_token_seconds: float | None = None
        self._seed = seed
        self._prompt_ids = prompt_ids
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._text: list[str] = []
        self._stop_reason: str | int | None = None
        self._detokenizer = IncrementalDetokenizer(
            decoder, skip_special_tokens=sampling.skip_special_tokens, only_appends=only_appends
        )
        self._stops = StopStrings(sampling.stop)
        self._told = (0, 0)

    def next_row(self) -> SamplingRow:
        """What decides the next token, besides the logits."""
        return SamplingRow(
            sampling=self.sampling,
            sample_index=self.index,
            step=len(self._token_ids),
            seed=self._seed,
            prompt_ids=self._prompt_ids,
            output_ids=self._token_ids,
        )

    def accept(self, token: SampledToken, *, ended_by: FinishReason | None) -> bool:
        """Takes the next token; returns whether a stop string has just ended the answer.

        Args:
            ended_by: why this is the last token by its number or its id, if it is.
        """
        now = time.perf_counter()
        self.first_token_seconds = self.first_token_seconds or now
        self.last_token_seconds = now
        self._token_ids.append(token.token_id)
        if token.logprob is not None:
            self._logprobs.append(token.logprob)
        is_end_token = ended_by == "stop"
        piece = "" if is_end_token else self._detokenizer.push(token.token_id)
        if ended_by is not None:
            piece += self._detokenizer.flush()
        text, matched = self._stops.push(piece)
        if matched is None and ended_by is not None:
            text += self._stops.flush()
        self._text.append(text)
        if matched is not None:
            self.finish_reason, self._stop_reason = "stop", matched
            return ended_by is None
        self.finish_reason = ended_by
        if is_end_token and token.token_id in self.sampling.stop_token_ids:
            self._stop_reason = token.token_id
        return False

    def completion(self) -> CompletionOutput:
        """Returns the answer as it is now."""
        return CompletionOutput(
            index=self.index,
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            logprobs=None if self.sampling.logprobs is None else tuple(self._logprobs),
        )

    def take_piece(self) -> OutputPiece:
        """Returns what has come since the last call."""
        num_texts, num_tokens = self._told
        self._told = len(self._text), len(self._token_ids)
        return OutputPiece(
            text="".join(self._text[num_texts:]),
            token_ids=tuple(self._token_ids[num_tokens:]),
            finish_reason=self.finish_reason,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self._token_ids)


def seconds_per_token(answers: Sequence[Answer]) -> float | None:
    """Returns the mean time per token after the first, over answers of at least two tokens."""
    spans = [
        (answer.last_token_seconds - answer.first_token_seconds) / (answer.num_tokens - 1)
        for answer in answers
        if answer.num_tokens > 1 and answer.last_token_seconds and answer.first_token_seconds
    ]
    return sum(spans) / len(spans) if spans else None
