"""Charges against a limit, and what is said when they do not fit."""

from __future__ import annotations

import re

import pytest

from headrace.errors import BudgetError
from headrace.storage.budget import SPENDABLE, Budget
from headrace.units import GIB, MIB, parse_bytes


def host(limit_bytes: int = 1000) -> Budget:
    """Of 1,000 bytes 980 can be spent."""
    return Budget(tier="host", limit_bytes=limit_bytes, option="--memory")


def test_charges_take_and_release_gives_back_once() -> None:
    budget = host()
    weights, cache = budget.charge("weights", 600), budget.charge("KV cache", 380)
    assert (budget.spendable_bytes, budget.charged_bytes, budget.free_bytes) == (980, 980, 0)
    weights.release()
    weights.release()
    assert (budget.charged_bytes, budget.free_bytes) == (380, 600)
    cache.release()
    assert budget.charged_bytes == 0


def test_a_charge_beyond_the_limit_takes_nothing() -> None:
    budget = host()
    budget.charge("weights", 600)
    with pytest.raises(BudgetError):
        budget.charge("KV cache", 381)
    assert budget.charged_bytes == 600


def test_a_refusal_says_what_is_taken_by_what_and_names_a_size_that_would_do() -> None:
    budget = host(GIB)
    budget.charge("weights", 600 * MIB)
    with pytest.raises(BudgetError) as refused:
        budget.charge("KV cache", 700 * MIB)
    message = str(refused.value)
    assert "KV cache needs 700.0 MiB of host memory" in message
    assert "of --memory 1.0 GiB only 403.5 MiB is left (weights 600.0 MiB, 2% in reserve)" in message
    named = re.search(r"give --memory (\S+) or more", message)
    assert named is not None
    assert 1300 * MIB / SPENDABLE < parse_bytes(named[1]) < 1450 * MIB


def test_a_refusal_of_an_empty_budget_says_its_size() -> None:
    with pytest.raises(
        BudgetError, match=r"needs 11 B of host memory, but --memory is 10 B, 2% of it in reserve; give"
    ):
        host(10).require("everything", 11)


def test_a_requirement_takes_nothing() -> None:
    budget = host()
    budget.require("weights", 980)
    assert budget.charged_bytes == 0


def test_settling_charges_what_is_used_beyond_the_charges() -> None:
    budget = host()
    budget.charge("Python", 50)
    budget.settle("libraries", 45)
    assert budget.ledger() == "Python 50 B"
    budget.settle("libraries", 57)
    budget.settle("libraries", 60)
    assert budget.ledger() == "Python 50 B, libraries 10 B"
    with pytest.raises(BudgetError, match="libraries needs 941 B"):
        budget.settle("libraries", 1001)


def test_the_ledger_adds_up_charges_of_one_purpose() -> None:
    budget = host()
    assert budget.ledger() == "nothing charged"
    for _ in range(3):
        budget.charge("weights", 7)
    budget.charge("KV cache", 1)
    assert budget.ledger() == "weights 21 B, KV cache 1 B"
