"""What this machine can do: as it was calibrated, or else as it is measured now."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import torch

from headrace.bench.utilization import Limits
from headrace.engine.model_work import ModelWork
from headrace.planner.calibration import measure_matrix_rate
from headrace.planner.calibration_store import latest_calibration
from headrace.planner.machine import identify_machine
from headrace.planner.matrix_rates import measure_memory

_TOKENS = 512


def machine_limits(work: ModelWork, note: Callable[[str], None]) -> Limits:
    """Returns the rates of the device that computes, in the dtype or with the packed weights that it computes with.

    Those of the last `headrace doctor --calibrate`, where it measured this dtype; else, and of products with packed
    weights always, they are measured in a moment and in half a gigabyte of memory.

    Args:
        note: hears of a calibration that cannot be read.
    """
    found = latest_calibration(identify_machine(work.device), note)
    matrix = None if found is None else found.matrix_rate(dtype=work.dtype, num_tokens=_TOKENS)
    if found is not None and matrix is not None and work.weight_codec is None:
        return Limits(
            memory_bytes_per_second=found.memory_bytes_per_second,
            matrix_operations_per_second=matrix,
            measured=f"{found.date}, headrace doctor --calibrate",
        )
    device = torch.device(work.device)
    memory, _ = measure_memory(device)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Limits(
        memory_bytes_per_second=memory,
        matrix_operations_per_second=measure_matrix_rate(device, getattr(torch, work.dtype), work.weight_codec),
        measured=f"{now}, after the runs",
    )
