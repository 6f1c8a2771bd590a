"""Prompt lookup: what follows is guessed to be what followed the same words before, in the row's own text.

A guess is verified in the sweep that it is made for, so that it changes no token; see `Scheduler`. The idea is Apoorv
Saxena's (prompt lookup decoding, 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONGEST_MATCH = 4
SHORTEST_MATCH = 2
MOST_TOKENS = 16


@dataclass(slots=True)
class Guessing:
    """How many tokens of one row are guessed at a time: more after guesses that were right, fewer after wrong ones."""

    num_tokens: int = 4

    def guess(self, token_ids: Sequence[int], most: int) -> tuple[int, ...]:
        """Returns up to `most` tokens that may follow `token_ids`."""
        return look_up(token_ids, min(most, self.num_tokens))

    def learn(self, num_guessed: int, num_right: int) -> None:
        """Takes note of what became of a guess."""
        if num_guessed and num_right == num_guessed:
            self.num_tokens = min(MOST_TOKENS, 2 * self.num_tokens)
        elif num_guessed:
            self.num_tokens = max(1, num_right + 1)


def look_up(token_ids: Sequence[int], most: int) -> tuple[int, ...]:
    """Returns what followed the last occurrence of the longest end of `token_ids` that occurs before, if any."""
    if most < 1:
        return ()
    ids = np.asarray(token_ids, dtype=np.int64)
    for length in range(min(LONGEST_MATCH, len(ids) - 1), SHORTEST_MATCH - 1, -1):
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], length)
        places = np.flatnonzero((windows == ids[-length:]).all(axis=1))
        if len(places):
            first = int(places[-1]) + length
            return tuple(ids[first : first + most].tolist())
    return ()
