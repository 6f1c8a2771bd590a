"""Whether the KV of a row that must leave is better moved down and up again, or computed anew. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class SweepSpeed:
    """How fast this engine has computed tokens: in the sweep that was best at it, usually one of long prompts.

    Attributes:
        tokens_per_second: 0 before the first sweep.
    """

    tokens_per_second: float = 0.0

    def note(self, num_tokens: int, seconds: float) -> None:
        """Notes what a sweep took."""
        self.tokens_per_second = max(self.tokens_per_second, num_tokens / max(seconds, 1e-9))


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveRates:
    """Bytes per second of writing to the tier below, and of reading from it."""

    down: float
    up: float


def moving_is_faster(num_bytes: int, rates: MoveRates, *, num_tokens: int, tokens_per_second: float) -> bool:
    """Whether `num_bytes` go down and come up in less time than `num_tokens` tokens are computed."""
    return (num_bytes / rates.down + num_bytes / rates.up) * tokens_per_second < num_tokens
