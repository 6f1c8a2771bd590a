"""What is shown on stderr."""

from __future__ import annotations

import io

from rich.console import Console

from headrace.jobs.progress import ConsoleProgress, SilentProgress, report_table, shorten
from headrace.jobs.report import JobReport


def shown(progress_type: type[ConsoleProgress] | type[SilentProgress], *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None, soft_wrap=True)
    progress = progress_type(console)
    progress.note("a [note]")
    progress.start(2)
    progress.sample("row 1 (x)", "what [is]?", "that [/is]")
    progress.row_done(5)
    progress.row_done(0)
    progress.stop()
    progress.stop()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_without_a_terminal_there_is_no_bar() -> None:
    assert shown(ConsoleProgress, terminal=False) == (
        "a [note]\nrow 1 (x)\n  asks     what [is]?\n  answers  that [/is]\n"
    )


def test_on_a_terminal_there_is_a_bar() -> None:
    text = shown(ConsoleProgress, terminal=True)
    assert "2/2" in text and "tokens/s" in text and "that [/is]" in text


def test_quiet_shows_notes_only() -> None:
    assert shown(SilentProgress, terminal=True) == "a [note]\n"


def test_the_table_leaves_out_what_is_not_known() -> None:
    report = JobReport(
        num_rows=1200,
        num_failed=3,
        num_truncated=0,
        prompt_tokens=5,
        generated_tokens=50_000,
        wall_seconds=100.0,
        ttft_seconds=None,
        tpot_seconds=0.05,
        num_preemptions=7,
        num_moved_down=4,
        peak_memory_bytes=3 * 1024**3,
    )
    console = Console(file=io.StringIO(), width=100)
    console.print(report_table(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in (
        "1,200 (3 failed)",
        "50,000",
        "1 min 40 s",
        "500.0",
        "50 ms",
        "7 (4 moved, 3 computed again)",
        "3.0 GiB",
    ):
        assert part in text
    assert "first token" not in text and "cut off" not in text


def test_long_text_is_shortened_in_the_middle() -> None:
    assert shorten("a\n b\t c") == "a b c"
    assert shorten("a" * 50 + "b" * 50, 21) == "a" * 9 + " … " + "b" * 9
