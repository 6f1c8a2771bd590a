"""A report that nobody measured."""

from __future__ import annotations

from headrace.bench.measures import Measures
from headrace.bench.report import Point, Report, Subject
from headrace.bench.utilization import Limits, Utilization
from headrace.bench.workload import Workload
from headrace.planner.machine import Machine
from headrace.units import GIB, MIB
from tests.unit.bench.runs import row, timed

MACHINE = Machine(
    system="Linux", python="3.12.1", headrace="0.1.0", torch="2.13.0", transformers="5.23.0", cpu="A CPU",
    instruction_sets=("avx2",), kernels=None, num_cores=4, num_threads=2, memory_total_bytes=8 * GIB,
    memory_free_bytes=4 * GIB, container_limit_bytes=None, gpus=(),
)  # fmt: skip
SUBJECT = Subject(
    date="2026-11-21T08:00:00+00:00", model="demo", description="demo: llama", device="cpu", dtype="float32",
    load_average=0.25, machine=MACHINE,
)  # fmt: skip


def made_up(*nums_rows: int, max_tokens: int = 3) -> Report:
    """Rows of which each takes a second for its prompt and half a second per further token, two runs of each number."""
    times = [1.0 + 0.5 * index for index in range(max_tokens)]
    return Report(
        subject=SUBJECT,
        limits=Limits(memory_bytes_per_second=20e9, matrix_operations_per_second=1e12, measured="never"),
        peak_memory_bytes=300 * MIB,
        points=tuple(
            Point(
                workload=Workload(prompt_tokens=10, max_tokens=max_tokens, num_rows=num_rows),
                warmup=1,
                repeats=2,
                measures=Measures.of([timed([row(*times)] * num_rows, seconds) for seconds in (2.0, 4.0)]),
                utilization=Utilization(mbu=0.25 if max_tokens > 1 else None, mfu=0.031),
            )
            for num_rows in nums_rows
        ),
    )
