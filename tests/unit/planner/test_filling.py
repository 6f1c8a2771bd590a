"""Sweeps are as large as hides what they read."""

from __future__ import annotations

import sys

import pytest

from headrace.planner.filling import Filling, Streamed


class Machine:
    """Reads for so long in every sweep, while it computes so many tokens per second."""

    def __init__(self, reading_seconds: float, tokens_per_second: float) -> None:
        self.reading_seconds = reading_seconds
        self.tokens_per_second = tokens_per_second
        self.total = Streamed(reading_seconds=0.0, waited_seconds=0.0)

    def streamed(self) -> Streamed:
        return self.total

    def run(self, filling: Filling, num_tokens: int) -> None:
        computing = num_tokens / self.tokens_per_second
        waited = max(0.0, self.reading_seconds - computing)
        self.total = Streamed(
            reading_seconds=self.total.reading_seconds + self.reading_seconds,
            waited_seconds=self.total.waited_seconds + waited,
        )
        filling.note(num_tokens, computing + waited)

    def run_long(self, filling: Filling) -> None:
        for _ in range(40):
            self.run(filling, filling.num_tokens)


@pytest.mark.parametrize("first", [230, 300, 600])
def test_from_any_beginning_it_comes_to_what_is_computed_while_weights_are_read(first: int) -> None:
    machine = Machine(reading_seconds=3.0, tokens_per_second=100.0)
    filling = Filling(first, machine.streamed)
    machine.run_long(filling)
    assert 300 <= filling.num_tokens <= 360


def test_it_follows_a_disk_that_becomes_slower() -> None:
    machine = Machine(reading_seconds=3.0, tokens_per_second=100.0)
    filling = Filling(300, machine.streamed)
    machine.reading_seconds = 6.0
    machine.run_long(filling)
    assert 600 <= filling.num_tokens <= 720


def test_sweeps_of_other_kinds_teach_nothing() -> None:
    machine = Machine(reading_seconds=3.0, tokens_per_second=1.0)
    filling = Filling(300, machine.streamed)
    before = filling.num_tokens
    machine.run(filling, 10)
    machine.run(filling, 4096)
    assert filling.num_tokens == before


def test_where_reading_is_hidden_anyway_nothing_is_limited() -> None:
    streamed = Machine(1.0, 1.0).streamed
    assert Filling(20, streamed).num_tokens == sys.maxsize
    assert Filling(300, streamed, num_rows=400).num_tokens == sys.maxsize
    assert Filling(300, streamed, num_rows=100).num_tokens < 400
