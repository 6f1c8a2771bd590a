"""What a person sees of a running job, all of it on stderr."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from headrace.jobs.report import JobReport
from headrace.units import format_bytes, format_seconds

_SHOWN_CHARACTERS = 300


class JobProgress(Protocol):
    """Hears of a job's events."""

    def note(self, message: str) -> None:
        """Something the user should know, once."""

    def start(self, num_rows: int | None) -> None:
        """The first row is about to be read; None rows when the input is a stream."""

    def row_done(self, num_generated_tokens: int) -> None:
        """A row ended, by its answer or by an error (then with no tokens)."""

    def sample(self, name: str, prompt: str, answer: str) -> None:
        """One of the first answers."""

    def stop(self) -> None:
        """No more rows. May be called twice."""


class SilentProgress:
    """Shows notes only, one line each."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, message: str) -> None:
        self._console.print(Text(message))

    def start(self, num_rows: int | None) -> None:
        """Nothing is shown."""

    def row_done(self, num_generated_tokens: int) -> None:
        """Nothing is shown."""

    def sample(self, name: str, prompt: str, answer: str) -> None:
        """Nothing is shown."""

    def stop(self) -> None:
        """Nothing is shown."""


class ConsoleProgress:
    """Shows notes and samples, and on a terminal a bar with rows, tokens per second and the time that is left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._num_tokens = 0
        self._bar = Progress(
            TextColumn("rows"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[rate]:,.1f} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("rows", start=False, rate=0.0)

    def note(self, message: str) -> None:
        self._console.print(Text(message))

    def start(self, num_rows: int | None) -> None:
        self._bar.update(self._task, total=num_rows)
        self._bar.start_task(self._task)
        self._bar.start()

    def row_done(self, num_generated_tokens: int) -> None:
        self._num_tokens += num_generated_tokens
        elapsed = self._bar.tasks[self._task].elapsed or 0.0
        self._bar.update(self._task, advance=1, rate=self._num_tokens / elapsed if elapsed else 0.0)

    def sample(self, name: str, prompt: str, answer: str) -> None:
        text = Text(f"{name}\n", style="bold")
        text.append("  asks     ", style="dim").append(f"{shorten(prompt)}\n", style="not bold")
        text.append("  answers  ", style="dim").append(shorten(answer), style="not bold")
        self._console.print(text)

    def stop(self) -> None:
        self._bar.stop()


def report_table(report: JobReport) -> Table:
    """Returns the figures of a job as people read them."""
    table = Table(show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    rows = f"{report.num_rows:,}" + (f" ({report.num_failed:,} failed)" if report.num_failed else "")
    table.add_row("rows", rows)
    if report.num_truncated:
        table.add_row("cut off at max_tokens", f"{report.num_truncated:,}")
    table.add_row("prompt tokens", f"{report.prompt_tokens:,}")
    table.add_row("generated tokens", f"{report.generated_tokens:,}")
    table.add_row("wall time", format_seconds(report.wall_seconds))
    table.add_row("generated tokens/s", f"{report.generated_tokens_per_second:,.1f}")
    if report.ttft_seconds is not None:
        table.add_row("time to first token, median", format_seconds(report.ttft_seconds))
    if report.tpot_seconds is not None:
        table.add_row("time per further token, median", format_seconds(report.tpot_seconds))
    if report.num_preemptions:
        table.add_row(
            "rows that lost their KV for a time",
            f"{report.num_preemptions:,} ({report.num_moved_down:,} moved, "
            f"{report.num_preemptions - report.num_moved_down:,} computed again)",
        )
    table.add_row("peak memory", format_bytes(report.peak_memory_bytes))
    return table


def shorten(text: str, limit: int = _SHOWN_CHARACTERS) -> str:
    """Returns `text` on one line, its middle left out where it is longer than `limit` characters."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    half = (limit - 3) // 2
    return f"{line[:half]} … {line[-half:]}"
