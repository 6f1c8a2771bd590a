"""Charges against a limit, and what is said when they do not fit."""

from __future__ import annotations

import re

import pytest

from headrace.errors import BudgetError
from headrace.storage.budget import Budget
from headrace.units import GIB, MIB, parse_bytes


def host(limit_bytes: int = 100) -> Budget:
    return Budget(tier="host", limit_bytes=limit_bytes, option="--memory")


def test_charges_take_and_release_gives_back_once() -> None:
    budget = host()
    weights, cache = budget.charge("weights", 60), budget.charge("KV cache", 40)
    assert (budget.charged_bytes, budget.free_bytes) == (100, 0)
    weights.release()
    weights.release()
    assert (budget.charged_bytes, budget.free_bytes) == (40, 60)
    cache.release()
    assert budget.charged_bytes == 0


def test_a_charge_beyond_the_limit_takes_nothing() -> None:
    budget = host()
    budget.charge("weights", 60)
    with pytest.raises(BudgetError):
        budget.charge("KV cache", 41)
    assert budget.charged_bytes == 60


def test_a_refusal_says_what_is_taken_by_what_and_names_a_size_that_would_do() -> None:
    budget = host(GIB)
    budget.charge("weights", 600 * MIB)
    with pytest.raises(BudgetError) as refused:
        budget.charge("KV cache", 700 * MIB)
    message = str(refused.value)
    assert "KV cache needs 700.0 MiB of host memory" in message
    assert "of --memory 1.0 GiB only 424.0 MiB is left (weights 600.0 MiB)" in message
    named = re.search(r"give --memory (\S+) or more", message)
    assert named is not None
    assert 1300 * MIB < parse_bytes(named[1]) < 1450 * MIB


def test_a_refusal_of_an_empty_budget_says_its_size() -> None:
    with pytest.raises(BudgetError, match=r"needs 11 B of host memory, but --memory is 10 B; give"):
        host(10).require("everything", 11)


def test_a_requirement_takes_nothing() -> None:
    budget = host()
    budget.require("weights", 100)
    assert budget.charged_bytes == 0


def test_settling_charges_what_is_used_beyond_the_charges() -> None:
    budget = host()
    budget.charge("Python", 50)
    budget.settle("libraries", 45)
    assert budget.ledger() == "Python 50 B"
    budget.settle("libraries", 57)
    budget.settle("libraries", 60)
    assert budget.ledger() == "Python 50 B, libraries 10 B"
    with pytest.raises(BudgetError, match="libraries needs 41 B"):
        budget.settle("libraries", 101)


def test_the_ledger_adds_up_charges_of_one_purpose() -> None:
    budget = host()
    assert budget.ledger() == "nothing charged"
    for _ in range(3):
        budget.charge("weights", 7)
    budget.charge("KV cache", 1)
    assert budget.ledger() == "weights 21 B, KV cache 1 B"
