"""What a measurement found and all that it depends on."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.bench.limits import machine_limits
from headrace.bench.measures import Measures, TimedRun
from headrace.bench.runner import time_runs
from headrace.bench.utilization import Limits, Utilization
from headrace.bench.workload import TokenIds, Workload, ordinary_token_ids
from headrace.engine.llm import LLM
from headrace.planner.machine import Machine, describe_machine
from headrace.storage.process_memory import peak_resident_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What was measured, where and when.

    Attributes:
        description: what the model was resolved to: dtype, device, memory, what is streamed.
        load_average: processes that wanted to run in the minute before; others make times longer, OpenMP's many times.
    """

    date: str
    model: str
    description: str
    device: str
    dtype: str
    load_average: float
    machine: Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One workload, measured.

    Attributes:
        warmup, repeats: runs before those that count, and these.
    """

    workload: Workload
    warmup: int
    repeats: int
    measures: Measures
    utilization: Utilization


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Workloads measured one after the other, on one engine.

    Attributes:
        peak_memory_bytes: the most memory that the process ever held, loading and warm-up included.
    """

    subject: Subject
    limits: Limits
    peak_memory_bytes: int
    points: tuple[Point, ...]


def measure(
    open_model: Callable[[], LLM],
    workloads: Sequence[Workload],
    *,
    warmup: int,
    repeats: int,
    note: Callable[[str], None],
) -> Report:
    """Measures `workloads` in turn on one model, which is closed again; then, where need be, the machine's limits.

    Raises:
        UsageError: the model cannot be run, or the rows do not fit it.
        RequestError: a row could not be answered.
        SweepError: the model failed.
    """
    timed: list[tuple[Workload, list[TimedRun]]] = []
    with open_model() as model:
        note(model.description)
        subject, token_ids = describe_subject(model), token_ids_of(model)
        for workload in workloads:
            if len(workloads) > 1:
                note(f"rows at a time: {workload.num_rows:,}")
            timed.append((workload, time_runs(model, workload, token_ids, warmup=warmup, repeats=repeats, note=note)))
        work, peak = model.work, peak_resident_bytes()
    limits = machine_limits(work, note)
    return Report(
        subject=subject,
        limits=limits,
        peak_memory_bytes=peak,
        points=tuple(
            Point(
                workload=workload,
                warmup=warmup,
                repeats=repeats,
                measures=Measures.of(runs),
                utilization=Utilization.of(runs, work, limits),
            )
            for workload, runs in timed
        ),
    )


def describe_subject(model: LLM) -> Subject:
    """Returns what `model` is and where it runs, now."""
    return Subject(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        model=model.model_name,
        description=model.description,
        device=model.work.device,
        dtype=model.work.dtype,
        load_average=os.getloadavg()[0],
        machine=describe_machine(),
    )


def token_ids_of(model: LLM) -> TokenIds:
    """Returns the tokens that prompts for `model` are made of."""
    return ordinary_token_ids(
        vocab_size=model.work.table.vocab_size,
        num_words=model.tokenizer.num_words,
        special=model.tokenizer.special_token_ids | set(model.defaults.eos_token_ids),
    )
