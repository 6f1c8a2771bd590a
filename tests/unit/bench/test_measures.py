"""Each measure is what docs/measuring.md says it is."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from headrace.bench.measures import Distribution, Measures, RowTimes
from headrace.engine.requests import GenerationRequest
from headrace.errors import RequestError
from headrace.sampling.parameters import SamplingParams
from headrace.testing import EchoLLM
from tests.unit.bench.runs import row, timed


def test_a_distribution_is_what_numpy_and_the_statistics_module_say() -> None:
    values = np.random.default_rng(1).exponential(size=101).tolist()
    found = Distribution.of(values)
    assert found is not None
    assert found.count == 101
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.std == pytest.approx(statistics.pstdev(values))
    assert found.p50 == statistics.median(values)
    assert (found.p95, found.p99) == (sorted(values)[95], sorted(values)[99])


def test_percentiles_lie_between_the_nearest_values() -> None:
    found = Distribution.of([1.0, 2.0])
    assert found is not None
    assert (found.p50, found.p95, found.p99) == pytest.approx((1.5, 1.95, 1.99))


def test_nothing_has_no_distribution() -> None:
    assert Distribution.of([]) is None


def test_the_times_of_a_row_begin_when_it_arrives() -> None:
    found = row(2.0, 2.5, 3.5, arrived=0.5)
    assert (found.ttft_seconds, found.end_to_end_seconds, found.tpot_seconds) == (1.5, 3.0, 0.75)
    assert found.inter_token_seconds == [0.5, 1.0]


def test_a_row_of_one_token_has_no_time_per_further_token() -> None:
    found = row(2.0)
    assert (found.ttft_seconds, found.end_to_end_seconds) == (2.0, 2.0)
    assert found.tpot_seconds is None and found.inter_token_seconds == []
    measures = Measures.of([timed([found], 2.0)])
    assert measures.tpot_seconds is None and measures.inter_token_seconds is None


def test_rates_are_of_each_run_and_times_of_each_row() -> None:
    rows = [row(1.0, 2.0), row(1.0, 2.0, 3.0)]
    measures = Measures.of([timed(rows, 5.0), timed(rows, 10.0)])
    assert measures.run_seconds.mean == 7.5
    assert (measures.generated_tokens_per_second.mean, measures.generated_tokens_per_second.std) == (0.75, 0.25)
    assert measures.total_tokens_per_second.mean == 25 / 5 * 0.75
    assert measures.requests_per_second.mean == (2 / 5 + 2 / 10) / 2
    assert measures.tpot_seconds is not None and measures.inter_token_seconds is not None
    counts = (measures.ttft_seconds, measures.tpot_seconds, measures.inter_token_seconds, measures.end_to_end_seconds)
    assert [found.count for found in counts] == [4, 4, 6, 4]


@pytest.mark.parametrize(
    ("rows", "most"),
    [
        ([row(1.0), row(2.0, started=1.0)], 1),  # the one begins in the sweep after the other's last
        ([row(1.5), row(2.0, started=1.0)], 2),
        ([row(4.0), row(2.0, started=1.0), row(3.0, started=2.0)], 2),
    ],
)
def test_rows_at_once_are_those_between_first_sweep_and_last_token(rows: list[RowTimes], most: int) -> None:
    assert timed(rows, 4.0).most_rows_at_once == most


def outputs_of(*prompts: bytes, max_num_seqs: int) -> list[RowTimes]:
    requests = [
        GenerationRequest(request_id=number, prompt_token_ids=tuple(prompt), params=SamplingParams(max_tokens=3))
        for number, prompt in enumerate(prompts)
    ]
    return [RowTimes.of(output) for output in EchoLLM(max_num_seqs=max_num_seqs, max_model_len=50).run(requests)]


def test_a_row_s_times_are_those_of_the_engine() -> None:
    first, second = outputs_of(b"abcd", b"efgh", max_num_seqs=1)
    assert first.token_seconds == pytest.approx([0.001, 0.002, 0.003])
    assert second.arrived_seconds == pytest.approx(0.003)
    assert second.token_seconds == pytest.approx([0.004, 0.005, 0.006])
    assert (second.num_prompt_tokens, second.num_tokens) == (4, 3)


def test_a_row_that_failed_has_no_times() -> None:
    with pytest.raises(RequestError, match="no room"):
        outputs_of(b"x" * 50, max_num_seqs=1)
