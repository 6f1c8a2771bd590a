"""One answer while it grows: tokens in, text out, and when it ends."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from torch import Tensor

from headrace.engine.outputs import CompletionOutput, FinishReason, OutputPiece
from headrace.sampling.detokenizer import IncrementalDetokenizer, TokenDecoder
from headrace.sampling.guidance import Guide
from headrace.sampling.parameters import ResolvedSampling
from headrace.sampling.sampler import SamplingRow, score
from headrace.sampling.stopping import StopStrings
from headrace.sampling.tokens import SampledToken, TokenLogprobs


class Answer:
    """One sample of one request.

    Attributes:
        finish_reason: None while it grows.
        token_seconds: when each token came, on the clock of `time.perf_counter`.
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
        guide: Guide | None = None,
    ) -> None:
        self.index = index
        self.sampling = sampling
        self.finish_reason: FinishReason | None = None
        self.token_seconds = array("d")
        self._seed = seed
        self._prompt_ids = prompt_ids
        self._guide = guide
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: dict[int, TokenLogprobs] = {}
        self._text: list[str] = []
        self._stop_reason: str | int | None = None
        self._detokenizer = IncrementalDetokenizer(
            decoder, skip_special_tokens=sampling.skip_special_tokens, only_appends=only_appends
        )
        self._stops = StopStrings(sampling.stop)
        self._told = (0, 0)

    def next_rows(self, guess: Sequence[int] = ()) -> list[SamplingRow]:
        """What decides the next token, besides the logits, and those after it, were `guess` right."""
        output_ids = [*self._token_ids, *guess] if guess else self._token_ids
        return [
            SamplingRow(
                sampling=self.sampling,
                sample_index=self.index,
                step=step,
                seed=self._seed,
                prompt_ids=self._prompt_ids,
                output_ids=output_ids if step == len(output_ids) else output_ids[:step],
                guide=self._guide,
            )
            for step in range(len(self._token_ids), len(output_ids) + 1)
        ]

    def score_prompt(self, start: int, logits: Tensor) -> None:
        """Notes how likely the prompt's tokens were after those from `start` on; logits (T, vocabulary)."""
        scored = self._prompt_ids[start + 1 : start + 1 + len(logits)]
        entries = score(logits[: len(scored)], scored, self.sampling.prompt_logprobs or 0)
        self._prompt_logprobs.update(enumerate(entries, start + 1))

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...] | None:
        """One entry per token of the prompt, None for the first; None where they were not asked for."""
        if self.sampling.prompt_logprobs is None:
            return None
        return tuple(self._prompt_logprobs.get(position) for position in range(len(self._prompt_ids)))

    @property
    def mean_logprob(self) -> float:
        """How likely the model finds the answer, per token."""
        return sum(entry.logprob for entry in self._logprobs) / len(self._logprobs)

    def accept_all(self, tokens: Sequence[SampledToken], ended_by: FinishReason | None, *, seconds: float) -> bool:
        """Takes tokens until the answer ends; returns whether its text ended it, and nobody knows it yet.

        Args:
            seconds: when they came, on the clock of `time.perf_counter`.
        """
        for token in tokens:
            is_last = token is tokens[-1]
            ended_by_text = self.accept(token, ended_by=ended_by if is_last else None, seconds=seconds)
            if self.finish_reason is not None:
                return ended_by_text and ended_by is None
        return False

    def accept(self, token: SampledToken, *, ended_by: FinishReason | None, seconds: float) -> bool:
        """Takes the next token; returns whether its text has just ended the answer: by a stop string, or by its form.

        Args:
            ended_by: why this is the last token by its number or its id, if it is.
            seconds: when it came, on the clock of `time.perf_counter`.
        """
        self.token_seconds.append(seconds)
        self._token_ids.append(token.token_id)
        if token.logprob is not None:
            self._logprobs.append(token.logprob)
        is_end_token = ended_by == "stop"
        is_complete = (
            self._guide is not None
            and not is_end_token
            and self._guide.accept(token.token_id, is_last=ended_by is not None)
        )
        reason: FinishReason | None = "stop" if is_complete else ended_by
        piece = "" if is_end_token else self._detokenizer.push(token.token_id)
        if reason is not None:
            piece += self._detokenizer.flush()
        text, matched = self._stops.push(piece)
        if matched is None and reason is not None:
            text += self._stops.flush()
        self._text.append(text)
        if matched is not None:
            self.finish_reason, self._stop_reason = "stop", matched
            return ended_by is None
        self.finish_reason = reason
        if is_end_token and token.token_id in self.sampling.stop_token_ids:
            self._stop_reason = token.token_id
        return ended_by is None and is_complete

    def completion(self) -> CompletionOutput:
        """Returns the answer as it is now."""
        return CompletionOutput(
            index=self.index,
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            logprobs=None if self.sampling.logprobs is None else tuple(self._logprobs),
            token_seconds=self.token_seconds[:],
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


def best_of(answers: Sequence[Answer]) -> list[Answer]:
    """Returns as many answers as were asked for, where more were drawn: the likeliest per token, best first."""
    num_kept = answers[0].sampling.num_kept
    if num_kept == len(answers):
        return list(answers)
    return sorted(answers, key=lambda answer: answer.mean_logprob, reverse=True)[:num_kept]


def seconds_per_token(answers: Sequence[Answer]) -> float | None:
    """Returns the mean time per token after the first, over answers of at least two tokens."""
    spans = [
        (answer.token_seconds[-1] - answer.token_seconds[0]) / (answer.num_tokens - 1)
        for answer in answers
        if answer.num_tokens > 1
    ]
    return sum(spans) / len(spans) if spans else None
