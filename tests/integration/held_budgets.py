"""What every measured job is held to: within its budget, or refused with a size that does."""

from __future__ import annotations

import re

from headrace.units import format_bytes, parse_bytes
from tests.integration.measured_jobs import JobRunner, Measured, MeasuredJob, with_memory


def named_size(message: str) -> int:
    """The size that an error says would do."""
    found = re.search(r"give --memory (\S+) or more", message)
    assert found is not None, message
    return parse_bytes(found[1])


def assert_held(job: MeasuredJob, measured: Measured) -> None:
    """The job either ran within its budget, or was refused before a weight was read."""
    if measured.error is not None:
        kind, message = measured.error
        assert kind == "BudgetError", measured.error
        assert "\n" not in message and not measured.weights_were_loaded, message
        return
    limit = job.options["memory"]
    assert measured.peak_bytes <= limit, (
        f"{measured.peak_bytes / limit:.3f} of the budget: {format_bytes(measured.peak_bytes)} of "
        f"{format_bytes(limit)}; {measured.ledger}; {job}"
    )
    assert measured.errors == [] and measured.num_generated > 0


def run_with_what_it_names(jobs: JobRunner, job: MeasuredJob) -> Measured:
    """Runs a job; one that is refused runs once more, with the memory that the refusal names."""
    measured = jobs.run(job)
    assert_held(job, measured)
    if measured.error is None:
        return measured
    enough = with_memory(job, named_size(measured.error[1]))
    measured = jobs.run(enough)
    assert measured.error is None, f"with the size that the refusal named: {measured.error}"
    assert_held(enough, measured)
    return measured
