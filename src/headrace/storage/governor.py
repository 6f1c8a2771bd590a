"""Compares what was charged with what the process really uses, and says when sweeps must become smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.errors import BudgetError
from headrace.storage.budget import Budget
from headrace.storage.process_memory import release_code_pages, release_freed_memory, resident_bytes
from headrace.units import format_bytes

PRESSURE = 0.99
"""Above this part of the limit sweeps become smaller; a plan spends nearly as much, so that less is no sign of need."""
TOLERANCE = 1.03
"""Above this one a run whose sweeps are as small as can be ends, rather than take what others need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Governor:
    """Watches one budget whose memory is the process's own.

    Attributes:
        measure: returns the bytes in use.
    """

    budget: Budget
    measure: Callable[[], int] = resident_bytes

    def pressed(self) -> bool:
        """Whether the process uses notably more than was planned, after what it does not need was given back."""
        for release in (release_freed_memory, release_code_pages):
            if not self._is_above():
                return False
            release()
        return self._is_above()

    def relieve(self) -> None:
        """Gives freed memory back where the process uses notably more than was planned; looking takes some 0.1 ms.

        Buffers of micro-batches of different sizes leave gaps that none of the next ones fits into, more in every
        layer: 40 MiB where 13 were in use.
        """
        if self._is_above():
            release_freed_memory()

    def _is_above(self) -> bool:
        return self.measure() > PRESSURE * self.budget.limit_bytes

    def check(self) -> None:
        """Raises BudgetError where use is above the limit beyond the tolerance: nothing is left to shrink."""
        used = self.measure()
        if used > self.budget.limit_bytes * TOLERANCE:
            raise BudgetError(
                f"the process uses {format_bytes(used)} of {self.budget.tier} memory, above {self.budget.option} "
                f"{format_bytes(self.budget.limit_bytes)} ({self.budget.ledger()}), and the smallest sweep does not "
                f"help; give more with {self.budget.option}"
            )
