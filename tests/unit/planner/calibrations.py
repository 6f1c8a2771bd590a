"""A calibration that nobody measured."""

from __future__ import annotations

from headrace.planner.calibration_record import AttentionRate, Calibration, DiskRead, MatrixRate
from headrace.planner.machine import MachineIdentity
from headrace.units import MIB

MACHINE = MachineIdentity(cpu="A CPU", num_cores=4, num_threads=2, torch="2.13.0", device="cpu", kernels=None)


def made_up(machine: MachineIdentity = MACHINE, disk_id: int = 7) -> Calibration:
    return Calibration(
        date="2026-11-21T08:00:00+00:00",
        headrace="0.1.0",
        machine=machine,
        disk_id=disk_id,
        folder="/models",
        model=None,
        seconds=31.5,
        direct_reads=True,
        disk_reads=(
            DiskRead(num_threads=1, block_bytes=8 * MIB, bytes_per_second=1e9),
            DiskRead(num_threads=2, block_bytes=8 * MIB, bytes_per_second=1.5e9),
        ),
        disk_write_bytes_per_second=0.8e9,
        memory_bytes_per_second=10e9,
        copy_bytes_per_second=4e9,
        matrix=tuple(
            MatrixRate(rows=2048, columns=2048, dtype=dtype, num_tokens=num_tokens, operations_per_second=rate)
            for dtype, num_tokens, rate in [("float32", 1, 2e9), ("float32", 512, 90e9), ("bfloat16", 512, 30e9)]
        ),
        attention=(
            AttentionRate(
                kind="decode", dtype="float32", num_rows=16, tokens_per_row=1, context_tokens=1024, num_heads=32,
                num_kv_heads=8, key_width=128, value_width=128, operations_per_second=5e9, kv_bytes_per_second=2e9,
            ),
        ),
    )  # fmt: skip
