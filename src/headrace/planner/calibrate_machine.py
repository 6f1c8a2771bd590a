"""Measures everything that plans rest on, in under a minute."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path

import torch

import headrace
from headrace.compression.kv_codec import KV_CODECS
from headrace.errors import DiskSpaceError
from headrace.planner.attention_rates import STANDARD_ATTENTION, measure_attention
from headrace.planner.calibration_record import STANDARD_SHAPE, AttentionRate, Calibration, MatrixRate
from headrace.planner.disk import device_id
from headrace.planner.disk_bandwidth import measure_disk
from headrace.planner.machine import identify_machine
from headrace.planner.matrix_rates import measure_matrices, measure_memory
from headrace.planner.model_shapes import ModelShapes, read_model_shapes

_DTYPES = (torch.float32, torch.bfloat16)


def calibrate_machine(
    folder: Path, *, device: torch.device, note: Callable[[str], None] = lambda _: None
) -> Calibration:
    """Measures the disk of `folder`, which is made if it is not there, and memory and arithmetic of `device`.

    Where `folder` holds a model, the shapes of its layers are measured beside the standard ones.

    Raises:
        DiskSpaceError: the folder cannot be written, or its disk is full.
        CheckpointError, UnsupportedModelError: there is a model, but it cannot be run.
    """
    start = time.monotonic()
    has_model = (folder / "config.json").is_file()
    model = read_model_shapes(folder) if has_model else ModelShapes(matrices=(), attention=None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskSpaceError(f"{folder}: cannot be made: {error.strerror}; name a folder that can") from error
    disk = measure_disk(folder, note=note)
    note("reading and copying memory")
    memory, copy = measure_memory(device)
    shapes = list(dict.fromkeys([STANDARD_SHAPE, *model.matrices]))
    matrix: list[MatrixRate] = []
    attention: list[AttentionRate] = []
    heads = model.attention or STANDARD_ATTENTION
    for dtype in _DTYPES:
        note(f"multiplying {len(shapes)} shapes of matrices in {str(dtype).removeprefix('torch.')}")
        matrix += measure_matrices(device, dtype, shapes)
        attention += measure_attention(device, dtype, heads)
    for codec in KV_CODECS.values():
        note(f"attention over KV in {codec.name}")
        attention += measure_attention(device, torch.bfloat16, heads, codec=codec)
    return Calibration(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        headrace=headrace.__version__,
        machine=identify_machine(str(device)),
        disk_id=device_id(folder),
        folder=str(folder.absolute()),
        model=str(folder.absolute()) if has_model else None,
        seconds=time.monotonic() - start,
        direct_reads=disk.direct_reads,
        disk_reads=disk.reads,
        disk_write_bytes_per_second=disk.write_bytes_per_second,
        memory_bytes_per_second=memory,
        copy_bytes_per_second=copy,
        matrix=tuple(matrix),
        attention=tuple(attention),
    )
