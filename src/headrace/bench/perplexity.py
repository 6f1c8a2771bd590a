"""How well a model knows a text: exact perplexity, in windows that slide over its tokens.

The windows are those of transformers' page "Perplexity of fixed-length models": window k has the tokens from
k x stride on, as many as the context; of its tokens those count that no window before it had, each by the probability
that the model gives it after all tokens before it in the window. The first token of the text has none before it and
never counts; where windows do not overlap, neither does the first of each. Every token that counts counts once and the
same, also in a last window that is shorter (that page weighs windows by their tokens less one).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.engine.interface import LanguageModel
from headrace.engine.outputs import RequestOutput
from headrace.engine.requests import GenerationRequest
from headrace.errors import OptionError, RequestError
from headrace.sampling.parameters import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_CONTEXT = 2048
SCORED_AT_ONCE = 512
"""Tokens of a sweep whose logits are held: enough for products to be fast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Tokens from `start` to `stop`, of which the last `num_scored` count."""

    start: int
    stop: int
    num_scored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """What was found.

    Attributes:
        perplexity: e to the mean negative log-likelihood.
        mean_nll: negative log-likelihood per scored token, in nats.
        bits_per_byte: bits per scored token, times tokens per byte of the text in UTF-8.
        num_scored_tokens: those that count.
        num_tokens: of the text, special tokens that the tokenizer puts around it included.
        context, stride: tokens of a window, and from the beginning of one to that of the next.
        seconds: that computing took; loading and tokenizing are not in it.
    """

    perplexity: float
    mean_nll: float
    bits_per_byte: float
    num_scored_tokens: int
    num_tokens: int
    num_bytes: int
    num_windows: int
    context: int
    stride: int
    seconds: float


def slide(num_tokens: int, *, context: int, stride: int) -> Iterator[Window]:
    """Yields the windows over a text of `num_tokens`; those in which nothing counts are left out."""
    scored_up_to = 1  # nothing comes before the first token
    for start in range(0, num_tokens, stride):
        stop = min(start + context, num_tokens)
        num_scored = stop - max(scored_up_to, start + 1)
        if num_scored > 0:
            yield Window(start=start, stop=stop, num_scored=num_scored)
        scored_up_to = stop
        if stop == num_tokens:
            return


def measure_perplexity(
    model: LanguageModel,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    window_done: Callable[[int, int], None] = lambda number, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Perplexity:
    """Returns how well `model` knows `text`, which is tokenized as a prompt is.

    Args:
        context: tokens of a window; 2,048 by default, or what the model's context holds where that is less.
        stride: half of the context by default.
        window_done: hears how many of how many windows are done.
        clock: seconds.

    Raises:
        OptionError: the windows cannot be, or the text has fewer than two tokens.
        RequestError: a window could not be scored.
    """
    context, stride = _checked(model.max_model_len, context, stride)
    token_ids = model.tokenizer.encode(text)
    num_special = len(model.tokenizer.encode(""))
    if len(token_ids) < 2:
        raise OptionError(f"the text has {len(token_ids)} tokens; expected at least two: the first is not scored")
    windows = list(slide(len(token_ids), context=context, stride=stride))
    start = clock()
    nll: dict[int, float] = {}
    for output in model.run(_request(index, window, token_ids) for index, window in enumerate(windows)):
        nll[output.request_id] = -math.fsum(_logprobs(output)[-windows[output.request_id].num_scored :])
        window_done(len(nll), len(windows))
    seconds = clock() - start
    num_scored, num_bytes = sum(window.num_scored for window in windows), len(text.encode())
    mean = math.fsum(nll.values()) / num_scored
    if not math.isfinite(mean):
        raise RequestError(
            "the model's logits are not finite; the dtype may be too narrow (try --dtype float32 or bfloat16) or the "
            "checkpoint damaged",
            code="non_finite_logits",
        )
    return Perplexity(
        perplexity=math.exp(mean),
        mean_nll=mean,
        bits_per_byte=mean / math.log(2) * (len(token_ids) - num_special) / num_bytes,
        num_scored_tokens=num_scored,
        num_tokens=len(token_ids),
        num_bytes=num_bytes,
        num_windows=len(windows),
        context=context,
        stride=stride,
        seconds=seconds,
    )


def _checked(room: int, context: int | None, stride: int | None) -> tuple[int, int]:
    if context is not None and not 2 <= context <= room:
        raise OptionError(f"--context is {context}; expected at least 2 tokens and at most {room}, which it holds here")
    context = min(room, DEFAULT_CONTEXT) if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise OptionError(f"--stride is {stride}; expected at least 1 and at most the context, {context} tokens")
    return context, stride


def _request(index: int, window: Window, token_ids: Sequence[int]) -> GenerationRequest:
    """A window's last token is its answer, whatever the model would have drawn: so a window fills the whole context."""
    *prompt, last = token_ids[window.start : window.stop]
    params = SamplingParams(
        max_tokens=1,
        temperature=0,
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=0,
        logits_processors=(_Only(last),),
    )
    return GenerationRequest(request_id=index, prompt_token_ids=tuple(prompt), params=params)


@dataclass(frozen=True, slots=True)
class _Only:
    """A logits processor that leaves one token to draw."""

    token_id: int

    def __call__(self, prompt_ids: Sequence[int], output_ids: Sequence[int], logits: Tensor) -> Tensor:
        only = logits.new_full(logits.shape, -math.inf)
        only[self.token_id] = 0
        return only


def _logprobs(output: RequestOutput) -> list[float]:
    """Returns the log-probabilities of a window's tokens, all but the first."""
    if output.error is not None:
        raise output.error
    answer = output.outputs[0].logprobs
    assert output.prompt_logprobs is not None and answer is not None, "they were asked for"
    return [entry.logprob for entry in (*output.prompt_logprobs[1:], *answer) if entry is not None]
