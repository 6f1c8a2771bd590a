"""Options of the commands that measure."""

from __future__ import annotations

import pytest

from headrace.cli.bench_options import measure_rows, noting
from headrace.cli.main import build_parser
from headrace.errors import OptionError

COMMANDS = (["bench", "throughput"], ["bench", "latency"], ["bench", "curve", "-o", "curve.csv"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[1])
def test_tokens_are_guessed_only_where_that_is_asked_for(command: list[str]) -> None:
    parse = build_parser().parse_args
    assert parse([*command, "-m", "m"]).speculate is False
    assert parse([*command, "-m", "m", "--speculation"]).speculate is True
    assert parse(["generate", "-m", "m"]).speculate is True


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[1])
def test_rows_are_of_512_and_32_tokens_by_default(command: list[str]) -> None:
    args = build_parser().parse_args([*command, "-m", "m"])
    assert (args.prompt_tokens, args.max_tokens, args.warmup) == (512, 32, 1)


def test_rows_that_cannot_run_together_are_refused_before_a_model_is_loaded() -> None:
    args = build_parser().parse_args(["bench", "curve", "-m", "no-such-model", "-o", "c.csv", "--max-num-seqs", "7"])
    with pytest.raises(OptionError, match="--batch-sizes asks for 8 rows at a time and --max-num-seqs allows 7"):
        measure_rows(args, [1, 8], at_once="--batch-sizes")


def test_progress_is_told_on_stderr_unless_it_shall_be_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    parse = build_parser().parse_args
    noting(parse(["bench", "latency", "-m", "m"]))("half")
    noting(parse(["bench", "latency", "-m", "m", "--quiet"]))("whole")
    assert capsys.readouterr() == ("", "half\n")
