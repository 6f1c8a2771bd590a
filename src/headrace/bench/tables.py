"""What was measured, as tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table

from headrace.bench.curve import CurvePoint
from headrace.bench.measures import Distribution, Measures
from headrace.bench.perplexity import Perplexity
from headrace.bench.report import Point, Report, Subject
from headrace.units import format_bytes, format_rate

_PIPED_WIDTH = 120


def show(*parts: RenderableType) -> None:
    """Prints tables to stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    for part in parts:
        console.print(part)


def summary_table(report: Report) -> Table:
    """Returns the rates of a report's one point."""
    (point,) = report.points
    measures, workload = point.measures, point.workload
    table = _plain_table()
    table.add_row("rows", f"{workload.num_rows:,} of {workload.prompt_tokens:,} + {workload.max_tokens:,} tokens")
    table.add_row("rows at a time", f"up to {measures.most_rows_at_once:,}")
    table.add_row("runs", f"{point.repeats:,}, after {point.warmup:,} to warm up")
    table.add_row("time of a run", _spread(measures.run_seconds, " s"))
    table.add_row("generated tokens/s", _spread(measures.generated_tokens_per_second))
    table.add_row("tokens/s, prompts included", _spread(measures.total_tokens_per_second))
    table.add_row("requests/s", _spread(measures.requests_per_second))
    for name, value in _utilization(point, report):
        table.add_row(name, value)
    table.add_row("peak memory", format_bytes(report.peak_memory_bytes))
    table.add_row("load average before", f"{report.subject.load_average:.2f}")
    return table


def latency_table(measures: Measures) -> Table:
    """Returns how the rows' times are distributed."""
    table = Table(title="milliseconds", title_justify="left")
    table.add_column("time")
    for name in ("mean", "std", "P50", "P95", "P99", "values"):
        table.add_column(name, justify="right")
    for name, found in (
        ("to the first token (TTFT)", measures.ttft_seconds),
        ("per further token of a row (TPOT)", measures.tpot_seconds),
        ("from a token to the next (ITL)", measures.inter_token_seconds),
        ("to the last token (end to end)", measures.end_to_end_seconds),
        ("of a run", measures.run_seconds),
    ):
        if found is not None:
            values = (found.mean, found.std, found.p50, found.p95, found.p99)
            table.add_row(name, *(f"{1e3 * value:,.2f}" for value in values), f"{found.count:,}")
    return table


def curve_table(report: Report) -> Table:
    """Returns one row per point."""
    table = Table(title="medians, but for tokens/s", title_justify="left")
    for name in ("rows at a time", "generated tokens/s", "TTFT, ms", "TPOT, ms", "end to end, ms", "MBU", "MFU"):
        table.add_column(name, justify="right")
    for point in map(CurvePoint.of, report.points):
        table.add_row(
            f"{point.batch_size:,}",
            f"{point.generated_tokens_per_second:,.1f} ± {point.generated_tokens_per_second_std:,.1f}",
            f"{1e3 * point.ttft_seconds:,.1f}",
            "" if point.tpot_seconds is None else f"{1e3 * point.tpot_seconds:,.2f}",
            f"{1e3 * point.end_to_end_seconds:,.1f}",
            "" if point.mbu is None else _share(point.mbu),
            _share(point.mfu),
        )
    return table


def perplexity_table(subject: Subject, found: Perplexity) -> Table:
    """Returns what was found about a text."""
    table = _plain_table()
    table.add_row("perplexity", f"{found.perplexity:,.4f}")
    table.add_row("negative log-likelihood per token", f"{found.mean_nll:.6f}")
    table.add_row("bits per byte", f"{found.bits_per_byte:.4f}")
    table.add_row("tokens scored", f"{found.num_scored_tokens:,} of {found.num_tokens:,}")
    table.add_row("windows", f"{found.num_windows:,} of {found.context:,} tokens, {found.stride:,} apart")
    table.add_row("time", f"{found.seconds:,.1f} s, {found.num_scored_tokens / found.seconds:,.0f} tokens/s")
    table.add_row("dtype", f"{subject.dtype} on {subject.device}")
    return table


def _utilization(point: Point, report: Report) -> Sequence[tuple[str, str]]:
    limits, used = report.limits, point.utilization
    memory, matrix = format_rate(limits.memory_bytes_per_second), limits.matrix_operations_per_second / 1e9
    rows = [] if used.mbu is None else [("MBU, decoding", f"{_share(used.mbu)} of {memory}")]
    rows.append(("MFU", f"{_share(used.mfu)} of {matrix:,.1f} GFLOP/s"))
    return [*rows, ("limits measured", limits.measured)]


def _spread(found: Distribution, unit: str = "") -> str:
    digits = 3 if found.mean < 10 else 1
    spread = f" ± {found.std:,.{digits}f}" if found.count > 1 else ""
    return f"{found.mean:,.{digits}f}{spread}{unit}"


def _share(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _plain_table() -> Table:
    table = Table(show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", overflow="fold")
    return table
