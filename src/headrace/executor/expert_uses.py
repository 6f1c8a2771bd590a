"""How often each expert was used of late."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.executor.image_sources import Expert

_KEPT = 0.97
"""Of an earlier use's weight, from sweep to sweep: half is left after some twenty, a few sentences of an answer."""


class ExpertUses:
    """Counts each expert's uses, at most one in a sweep; earlier ones count less and less."""

    def __init__(self) -> None:
        self._sweep = 0
        self._uses: dict[Expert, tuple[float, int]] = {}

    def next_sweep(self) -> None:
        """Begins another sweep."""
        self._sweep += 1

    def note(self, experts: Iterable[Expert]) -> None:
        """Counts uses in this sweep."""
        for expert in experts:
            if self._uses.get(expert, (0.0, 0))[1] != self._sweep:
                self._uses[expert] = (self.of(expert) + 1, self._sweep)

    def of(self, expert: Expert) -> float:
        """Returns the weight of all uses so far."""
        weight, sweep = self._uses.get(expert, (0.0, 0))
        return weight * _KEPT ** (self._sweep - sweep)
