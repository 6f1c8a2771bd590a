"""How many tokens of a sweep hide the reading of its weights: reckoned first, then learned from sweeps. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

LEAST_TOKENS = 256
"""Products of fewer tokens are slower by more than is won by hiding what is read: on a CPU without bf16 instructions
those of 128 ran at 0.6 of the rate of 1,024, and filling sweeps with 133 to 160 tokens lost a tenth in a job of three
times the rows that run at a time."""
_MARGIN = 1.15
"""Too many tokens cost nothing while rows queue; too few leave processors idle."""
_NEWS = 0.2
"""What one sweep counts against those before it: the rates of shared disks wander."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Streamed:
    """What a stream of weights has done until now.

    Attributes:
        reading_seconds: in which anything was being read.
        waited_seconds: in which computing stood still for what was read.
    """

    reading_seconds: float
    waited_seconds: float


class Filling:
    """The tokens that are computed while the weights of one sweep are read."""

    def __init__(self, num_tokens: int, streamed: Callable[[], Streamed], *, num_rows: int = 0) -> None:
        """`num_tokens`: to begin with. `num_rows`: that run at a time; where they are enough, prompts need not help."""
        self._num_tokens = float(num_tokens)
        self._num_rows = num_rows
        self._streamed = streamed
        self._before = streamed()

    @property
    def num_tokens(self) -> int:
        """For a sweep while rows queue; sys.maxsize where there is nothing to be won."""
        wanted = int(_MARGIN * self._num_tokens)
        return sys.maxsize if wanted < LEAST_TOKENS or wanted <= self._num_rows else wanted

    @property
    def hidden_tokens(self) -> int:
        """What any sweep may compute without taking longer than its weights do."""
        return int(self._num_tokens)

    def note(self, num_tokens: int, seconds: float) -> None:
        """Learns from a sweep that has just run. Much smaller and much larger ones compute at other rates."""
        now, before = self._streamed(), self._before
        self._before = now
        computing = seconds - (now.waited_seconds - before.waited_seconds)
        if computing > 0 and self._num_tokens / 4 <= num_tokens <= 4 * max(self._num_tokens, LEAST_TOKENS):
            found = (now.reading_seconds - before.reading_seconds) * num_tokens / computing
            self._num_tokens += _NEWS * (found - self._num_tokens)
