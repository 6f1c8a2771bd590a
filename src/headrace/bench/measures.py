"""What is measured, each thing by one definition: see docs/measuring.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from headrace.engine.outputs import RequestOutput


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """Values of one kind. Percentiles are interpolated between the two nearest values; `std` is that of all values."""

    count: int
    mean: float
    std: float
    p50: float
    p95: float
    p99: float

    @staticmethod
    def of(values: Iterable[float]) -> Distribution | None:
        """Returns how `values` are distributed; None where there are none."""
        found = np.fromiter(values, dtype=np.float64)
        if not len(found):
            return None
        p50, p95, p99 = np.percentile(found, (50, 95, 99)).tolist()
        return Distribution(
            count=len(found), mean=float(found.mean()), std=float(found.std()), p50=p50, p95=p95, p99=p99
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTimes:
    """When things happened to one row, on one clock.

    Attributes:
        arrived_seconds: when the engine took it in.
        started_seconds: when it was in a sweep for the first time.
        token_seconds: when each of its tokens came; at least one.
    """

    num_prompt_tokens: int
    arrived_seconds: float
    started_seconds: float
    token_seconds: Sequence[float]

    @staticmethod
    def of(output: RequestOutput) -> RowTimes:
        """Returns the times of the first answer.

        Raises:
            RequestError: that which the request ended with.
        """
        if output.error is not None:
            raise output.error
        assert output.metrics is not None, "an answered request ran"
        return RowTimes(
            num_prompt_tokens=len(output.prompt_token_ids),
            arrived_seconds=output.metrics.arrived_seconds,
            started_seconds=output.metrics.arrived_seconds + output.metrics.queued_seconds,
            token_seconds=output.outputs[0].token_seconds,
        )

    @property
    def num_tokens(self) -> int:
        """Generated ones."""
        return len(self.token_seconds)

    @property
    def ttft_seconds(self) -> float:
        """Time to the first token."""
        return self.token_seconds[0] - self.arrived_seconds

    @property
    def end_to_end_seconds(self) -> float:
        """Time to the last token."""
        return self.token_seconds[-1] - self.arrived_seconds

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time per token after the first; None for one token."""
        num_further = self.num_tokens - 1
        return (self.token_seconds[-1] - self.token_seconds[0]) / num_further if num_further else None

    @property
    def inter_token_seconds(self) -> list[float]:
        """Time between each token and the next."""
        return [after - before for before, after in pairwise(self.token_seconds)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedRun:
    """One run of a workload.

    Attributes:
        seconds: from the first row given to the last row back.
        rows: in the order in which they ended.
    """

    seconds: float
    rows: tuple[RowTimes, ...]

    @property
    def num_generated_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(row.num_prompt_tokens for row in self.rows)

    @property
    def most_rows_at_once(self) -> int:
        """The most rows that were between their first sweep and their last token at one time."""
        starts = [(row.started_seconds, 1) for row in self.rows]
        ends = [(row.token_seconds[-1], -1) for row in self.rows]
        running = np.cumsum([step for _, step in sorted(starts + ends)])
        return int(running.max(initial=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """Everything that some runs of one workload show. Rates and times of whole runs: one value per run.

    Attributes:
        run_seconds: of a whole run.
        total_tokens_per_second: prompts counted, too.
        ttft_seconds, end_to_end_seconds: one value per row.
        tpot_seconds: the same; None where answers have one token.
        inter_token_seconds: one value per token after the first of a row; None where there is none.
        most_rows_at_once: over all runs.
    """

    run_seconds: Distribution
    generated_tokens_per_second: Distribution
    total_tokens_per_second: Distribution
    requests_per_second: Distribution
    ttft_seconds: Distribution
    tpot_seconds: Distribution | None
    inter_token_seconds: Distribution | None
    end_to_end_seconds: Distribution
    most_rows_at_once: int

    @staticmethod
    def of(runs: Sequence[TimedRun]) -> Measures:
        """Returns the measures of at least one run of at least one row."""
        rows = [row for run in runs for row in run.rows]
        return Measures(
            run_seconds=_some(run.seconds for run in runs),
            generated_tokens_per_second=_some(run.num_generated_tokens / run.seconds for run in runs),
            total_tokens_per_second=_some(
                (run.num_prompt_tokens + run.num_generated_tokens) / run.seconds for run in runs
            ),
            requests_per_second=_some(len(run.rows) / run.seconds for run in runs),
            ttft_seconds=_some(row.ttft_seconds for row in rows),
            tpot_seconds=Distribution.of(row.tpot_seconds for row in rows if row.tpot_seconds is not None),
            inter_token_seconds=Distribution.of(gap for row in rows for gap in row.inter_token_seconds),
            end_to_end_seconds=_some(row.end_to_end_seconds for row in rows),
            most_rows_at_once=max(run.most_rows_at_once for run in runs),
        )


def _some(values: Iterable[float]) -> Distribution:
    found = Distribution.of(values)
    assert found is not None, "there is at least one run of at least one row"
    return found
