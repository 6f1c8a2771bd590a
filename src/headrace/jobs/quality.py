"""What fewer bits change: some rows of a job, answered in full precision, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from headrace.engine.interface import LanguageModel
from headrace.engine.requests import GenerationRequest
from headrace.errors import RequestError
from headrace.jobs.requests import generation_request
from headrace.jobs.rows import Row, RowError

Answers = Mapping[int, tuple[int, ...]]
"""Tokens of the first answer by the row's index; without those that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How alike two models answer.

    Attributes:
        num_rows: that both have answered.
        num_equal: of them those with the same tokens.
        num_tokens: of the answers in full precision.
        num_agreeing: of these tokens those before the first one that differs.
    """

    num_rows: int
    num_equal: int
    num_tokens: int
    num_agreeing: int

    def __str__(self) -> str:
        if not self.num_rows:
            return "no row was answered by both, with fewer bits and in full precision"
        share = self.num_agreeing / max(1, self.num_tokens)
        return (
            f"of {self.num_rows} rows that were also answered in full precision {self.num_equal} have the same answer; "
            f"{share:.0%} of their {self.num_tokens:,} tokens come before the first that differs"
        )


def evenly_drawn(rows: Iterable[Row | RowError], num_rows: int, num_drawn: int) -> list[Row]:
    """Returns `num_drawn` of the `num_rows` rows, spread evenly over them, but for those that cannot be asked."""
    count = min(num_rows, num_drawn)
    wanted = {num_rows * index // count for index in range(count)}
    return [row for row in rows if isinstance(row, Row) and row.key.index in wanted]


def answers(model: LanguageModel, rows: Iterable[Row]) -> Answers:
    """Asks `model` for the answers to `rows`."""
    return {
        output.request_id: output.outputs[0].token_ids for output in model.run(_requests(model, rows)) if output.outputs
    }


def agreement(full: Answers, other: Answers) -> Agreement:
    """Compares the answers in full precision with others."""
    both = full.keys() & other.keys()
    return Agreement(
        num_rows=len(both),
        num_equal=sum(full[row] == other[row] for row in both),
        num_tokens=sum(len(full[row]) for row in both),
        num_agreeing=sum(_agreeing(full[row], other[row]) for row in both),
    )


def _agreeing(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    differing = (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _requests(model: LanguageModel, rows: Iterable[Row]) -> Iterator[GenerationRequest]:
    for row in rows:
        try:
            yield generation_request(row, model)
        except RequestError:
            continue  # the job itself will say so
