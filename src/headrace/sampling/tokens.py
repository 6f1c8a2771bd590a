"""What sampling a row gives. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.errors import RequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one place of an answer, of the model's own distribution (before temperature and limits).

    Attributes:
        rank: 1 plus the number of tokens that were more likely.
        top: the most likely tokens and their log-probabilities, best first, the lower id first among equals.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledToken:
    """One row's next token.

    Attributes:
        logprob: None unless the row asked for it.
        is_finite: False when the row's logits hold NaN or their maximum is infinite (a dtype that overflowed, damaged
            weights); `token_id` then means nothing and the row cannot go on.
        error: why nothing could be drawn; the same holds then.
    """

    token_id: int
    logprob: TokenLogprobs | None = None
    is_finite: bool = True
    error: RequestError | None = None
