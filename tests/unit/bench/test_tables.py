"""What was measured, for people."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from headrace.bench.perplexity import Perplexity
from headrace.bench.tables import curve_table, latency_table, perplexity_table, show, summary_table
from tests.unit.bench.reports import SUBJECT, made_up


def lines_of(table: RenderableType) -> dict[str, str]:
    """The rows of a table as they are printed: name -> the rest."""
    console = Console(width=120, record=True, file=io.StringIO(), highlight=False)
    console.print(table)
    rows = [[cell.strip() for cell in line.strip("│┃ \n").split("│")] for line in console.export_text().splitlines()]
    return {row[0]: " | ".join(row[1:]) for row in rows if len(row) > 1}


def test_the_summary_says_rates_shares_and_memory() -> None:
    assert lines_of(summary_table(made_up(4))) == {
        "rows": "4 of 10 + 3 tokens",
        "rows at a time": "up to 4",
        "runs": "2, after 1 to warm up",
        "time of a run": "3.000 ± 1.000 s",
        "generated tokens/s": "4.500 ± 1.500",
        "tokens/s, prompts included": "19.5 ± 6.5",
        "requests/s": "1.500 ± 0.500",
        "MBU, decoding": "25.0 % of 20.00 GB/s",
        "MFU": "3.1 % of 1,000.0 GFLOP/s",
        "limits measured": "never",
        "peak memory": "300.0 MiB",
        "load average before": "0.25",
    }


def test_times_are_shown_with_their_spread_and_percentiles() -> None:
    found = lines_of(latency_table(made_up(4).points[0].measures))
    assert found["to the first token (TTFT)"] == "1,000.00 | 0.00 | 1,000.00 | 1,000.00 | 1,000.00 | 8"
    assert found["from a token to the next (ITL)"] == "500.00 | 0.00 | 500.00 | 500.00 | 500.00 | 16"
    assert found["of a run"] == "3,000.00 | 1,000.00 | 3,000.00 | 3,900.00 | 3,980.00 | 2"


def test_answers_of_one_token_have_no_times_between_tokens() -> None:
    report = made_up(2, max_tokens=1)
    assert not any("ITL" in name or "TPOT" in name for name in lines_of(latency_table(report.points[0].measures)))
    assert "MBU, decoding" not in lines_of(summary_table(report))
    assert lines_of(curve_table(report))["2"] == "0.8 ± 0.2 | 1,000.0 |  | 1,000.0 |  | 3.1 %"


def test_a_curve_has_a_line_for_each_number_of_rows() -> None:
    found = lines_of(curve_table(made_up(1, 16)))
    assert found["16"] == "18.0 ± 6.0 | 1,000.0 | 500.00 | 2,000.0 | 25.0 % | 3.1 %"
    assert found["1"].startswith("1.1 ± 0.4")


def test_a_perplexity_is_shown_with_what_it_depends_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = Perplexity(
        perplexity=12.34567, mean_nll=2.513, bits_per_byte=0.98765, num_scored_tokens=1999, num_tokens=2000,
        num_bytes=8000, num_windows=7, context=512, stride=256, seconds=4.0,
    )  # fmt: skip
    show(perplexity_table(SUBJECT, found))
    printed = capsys.readouterr().out
    for text in ("12.3457", "2.513000", "0.9877", "1,999 of 2,000", "7 of 512 tokens, 256 apart", "float32 on cpu"):
        assert text in printed
