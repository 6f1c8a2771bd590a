"""A budget: bytes that the user gave to one tier, and the ledger of what they are spent on."""

from __future__ import annotations

import math

from headrace.errors import BudgetError
from headrace.units import GIB, format_bytes

SPENDABLE = 0.98
"""Of a limit: a process uses somewhat more than what was charged, and is to stay under the limit all the same."""
_MARGIN = 1.02


class Charge:
    """Bytes that were taken from a budget for one purpose; given back once, with `release`."""

    def __init__(self, budget: Budget, what: str, num_bytes: int) -> None:
        self._budget = budget
        self.what = what
        self.num_bytes = num_bytes

    def release(self) -> None:
        """Gives the bytes back; a second call does nothing."""
        self._budget.release(self)


class Budget:
    """The limit of one tier and all charges against it.

    Attributes:
        tier: `host` or `device`, for messages.
        limit_bytes: what the user gave.
        option: the command-line option that raises it.
    """

    def __init__(self, *, tier: str, limit_bytes: int, option: str) -> None:
        self.tier = tier
        self.limit_bytes = limit_bytes
        self.option = option
        self._charges: list[Charge] = []

    @property
    def charged_bytes(self) -> int:
        """Sum of all charges."""
        return sum(charge.num_bytes for charge in self._charges)

    @property
    def spendable_bytes(self) -> int:
        """What the sum of the charges never exceeds: `SPENDABLE` of the limit."""
        return int(SPENDABLE * self.limit_bytes)

    @property
    def free_bytes(self) -> int:
        """What is left to be spent."""
        return self.spendable_bytes - self.charged_bytes

    def charge(self, what: str, num_bytes: int) -> Charge:
        """Takes `num_bytes` for the purpose `what`; to be called before the bytes are allocated.

        Raises:
            BudgetError: not so much is left; nothing was taken.
        """
        self.require(what, num_bytes)
        charge = Charge(self, what, num_bytes)
        self._charges.append(charge)
        return charge

    def require(self, what: str, num_bytes: int) -> None:
        """Checks that `num_bytes` are left for the purpose `what`; takes nothing.

        Raises:
            BudgetError: they are not; the message says with which limit they would be.
        """
        if num_bytes > self.free_bytes:
            limit, left = format_bytes(self.limit_bytes), format_bytes(max(0, self.free_bytes))
            given = f"of {self.option} {limit} only {left} is left ({self.ledger()}, {1 - SPENDABLE:.0%} in reserve)"
            whole = f"{self.option} is {limit}, {1 - SPENDABLE:.0%} of it in reserve"
            raise BudgetError(
                f"{what} needs {format_bytes(num_bytes)} of {self.tier} memory, but "
                f"{given if self._charges else whole}; "
                f"give {self.option} {_rounded_up((self.charged_bytes + num_bytes) / SPENDABLE)} or more"
            )

    def settle(self, what: str, used_bytes: int) -> None:
        """Charges, as `what`, the part of `used_bytes` that is beyond all charges; less than them changes nothing.

        Raises:
            BudgetError: so much is not left.
        """
        if used_bytes > self.charged_bytes:
            self.charge(what, used_bytes - self.charged_bytes)

    def release(self, charge: Charge) -> None:
        """Gives a charge's bytes back; does nothing to one that was given back before."""
        if charge in self._charges:
            self._charges.remove(charge)

    def ledger(self) -> str:
        """Returns what the budget is spent on, as `weights 2.3 GiB, KV cache 1.0 GiB`."""
        totals: dict[str, int] = {}
        for charge in self._charges:
            totals[charge.what] = totals.get(charge.what, 0) + charge.num_bytes
        return ", ".join(f"{what} {format_bytes(num_bytes)}" for what, num_bytes in totals.items()) or "nothing charged"


def _rounded_up(num_bytes: float) -> str:
    """A size to type, a little above `num_bytes`: the same process takes some more or less each time."""
    return f"{math.ceil(10 * _MARGIN * num_bytes / GIB) / 10:.1f}GiB"
