"""The figures of a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.engine.outputs import CompletionOutput, FinishReason, RequestMetrics, RequestOutput
from headrace.errors import OptionError
from headrace.jobs.report import JobTally, ReportFile


def answered(ttft: float, tpot: float | None, *reasons: FinishReason) -> RequestOutput:
    return RequestOutput(
        request_id=0,
        prompt=None,
        prompt_token_ids=(1, 2, 3),
        outputs=tuple(
            CompletionOutput(index=i, text="", token_ids=(5,) * 4, finish_reason=reason)
            for i, reason in enumerate(reasons)
        ),
        metrics=RequestMetrics(
            ttft_seconds=ttft, tpot_seconds=tpot, queued_seconds=0.0, num_preemptions=3, num_moved_down=1
        ),
    )


def tally_of(*outputs: RequestOutput, failures: int = 0, seconds: float = 2.0) -> JobTally:
    times = iter([0.0, seconds])
    tally = JobTally(lambda: next(times))
    for output in outputs:
        tally.add_answer(output)
    for _ in range(failures):
        tally.add_failure()
    return tally


def test_the_report_has_exactly_the_promised_keys() -> None:
    tally = tally_of(answered(1.0, None, "stop"), answered(3.0, 0.5, "length", "length"), failures=2)
    figures = json.loads(tally.report().to_json())
    assert figures.pop("peak_memory_bytes") > 1_000_000
    assert figures == {
        "num_rows": 4,
        "num_failed": 2,
        "num_truncated": 1,
        "prompt_tokens": 6,
        "generated_tokens": 12,
        "wall_seconds": 2.0,
        "generated_tokens_per_second": 6.0,
        "ttft_seconds": 2.0,
        "tpot_seconds": 0.5,
        "num_preemptions": 6,
        "num_moved_down": 2,
    }


def test_a_job_without_answers_has_no_medians_and_no_speed() -> None:
    report = tally_of(failures=1, seconds=0.0).report()
    assert (report.ttft_seconds, report.tpot_seconds, report.generated_tokens_per_second) == (None, None, 0.0)


def test_a_report_needs_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "report.json"):
        with pytest.raises(OptionError, match="expected a file in a folder that exists"):
            ReportFile(str(path))
    ReportFile(str(tmp_path / "report.json")).write(tally_of().report())
    assert json.loads((tmp_path / "report.json").read_text())["num_rows"] == 0
