"""What `headrace doctor` found, as tables for people."""

from __future__ import annotations

import sys
from itertools import groupby

from rich.console import Console
from rich.table import Table

from headrace.planner.calibration_record import AttentionRate, Calibration
from headrace.planner.disk import Disk
from headrace.planner.machine import Machine
from headrace.units import format_bytes, format_rate

_PIPED_WIDTH = 120
_DIRECT = {True: "yes", False: "no, through the page cache", None: "unknown: nothing there could be opened"}


def show_tables(machine: Machine, disk: Disk, calibration: Calibration | None) -> None:
    """Prints everything to stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    console.print(machine_table(machine, disk))
    if calibration is None:
        console.print("Rates of this machine and disk were not measured yet: headrace doctor --calibrate does that.")
        return
    model = "" if calibration.model is None else f", with the shapes of {calibration.model}"
    console.print(f"Measured {calibration.date} on {calibration.machine.device} in {calibration.folder}{model}:")
    console.print(rates_table(calibration))
    console.print(disk_table(calibration))
    console.print(matrix_table(calibration))


def machine_table(machine: Machine, disk: Disk) -> Table:
    """Returns what the machine and the disk are."""
    table = _plain_table()
    table.add_row("system", machine.system)
    table.add_row("Python", machine.python)
    table.add_row("headrace, torch, transformers", f"{machine.headrace}, {machine.torch}, {machine.transformers}")
    table.add_row("CPU", machine.cpu)
    table.add_row("instruction sets", ", ".join(machine.instruction_sets) or "none of those that matter")
    table.add_row(
        "kernels", machine.kernels or "none: torch does their work (python -m headrace.kernels.build builds them)"
    )
    table.add_row("cores to use, threads", f"{machine.num_cores}, {machine.num_threads}")
    free, total = format_bytes(machine.memory_free_bytes), format_bytes(machine.memory_total_bytes)
    table.add_row("memory", f"{free} free of {total}")
    limit = machine.container_limit_bytes
    table.add_row("container's limit", "none" if limit is None else format_bytes(limit))
    gpus = [f"{gpu.name}, {format_bytes(gpu.memory_bytes)}" for gpu in machine.gpus]
    table.add_row("GPU", "\n".join(gpus) or "none that torch can use")
    table.add_row("disk of", disk.folder)
    table.add_row("disk", f"{format_bytes(disk.free_bytes)} free of {format_bytes(disk.total_bytes)}")
    table.add_row("direct reads (O_DIRECT)", _DIRECT[disk.direct_reads])
    return table


def rates_table(calibration: Calibration) -> Table:
    """Returns the rates that are one number each."""
    table = _plain_table()
    table.add_row("disk, written", format_rate(calibration.disk_write_bytes_per_second))
    table.add_row("memory, read", format_rate(calibration.memory_bytes_per_second))
    table.add_row("memory, copied", format_rate(calibration.copy_bytes_per_second))
    for rate in calibration.attention:
        value = f"{rate.operations_per_second / 1e9:,.1f} GFLOP/s, KV at {format_rate(rate.kv_bytes_per_second)}"
        table.add_row(_attention_name(rate), value)
    return table


def disk_table(calibration: Calibration) -> Table:
    """Returns reads by threads and by block size."""
    sizes = sorted({read.block_bytes for read in calibration.disk_reads})
    table = Table(title=f"disk, read {'directly' if calibration.direct_reads else 'through the page cache'}")
    table.add_column("threads", justify="right")
    for size in sizes:
        table.add_column(f"{format_bytes(size)} at a time", justify="right")
    for num_threads in sorted({read.num_threads for read in calibration.disk_reads}):
        rates = [calibration.disk_rate(num_threads=num_threads, block_bytes=size) for size in sizes]
        table.add_row(str(num_threads), *("" if rate is None else format_rate(rate) for rate in rates))
    return table


def matrix_table(calibration: Calibration) -> Table:
    """Returns products by shape and dtype, and by tokens."""
    counts = sorted({rate.num_tokens for rate in calibration.matrix})
    table = Table(title="matrix products, GFLOP/s")
    table.add_column("weight")
    for count in counts:
        table.add_column(f"{count:,} tokens" if count > 1 else "1 token", justify="right")
    for (rows, columns, dtype), _ in groupby(
        calibration.matrix, key=lambda rate: (rate.rows, rate.columns, rate.dtype)
    ):
        rates = [calibration.matrix_rate(dtype=dtype, num_tokens=count, shape=(rows, columns)) for count in counts]
        table.add_row(f"{rows} x {columns}, {dtype}", *("" if rate is None else f"{rate / 1e9:,.1f}" for rate in rates))
    return table


def _attention_name(rate: AttentionRate) -> str:
    if rate.kind == "decode":
        work = f"decode, {rate.num_rows} rows of {rate.context_tokens:,} tokens"
    else:
        work = f"prompt of {rate.tokens_per_row:,} tokens"
    return f"attention, {rate.dtype}, {work}"


def _plain_table() -> Table:
    table = Table(show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table
