"""The command line as a whole: help, mistakes, statuses."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

import headrace
from headrace.cli import main as cli
from headrace.cli import run as run_command
from headrace.errors import BudgetError, PlatformError, RequestError, SweepError


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Status and stderr."""
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    assert captured.out == ""
    return status, captured.err


@pytest.mark.parametrize(
    "command", [[], *(name.split() for name in cli.COMMANDS)], ids=lambda words: " ".join(words) or "-"
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    program = """
import sys
from headrace.cli.main import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "transformers", "numpy", "rich", "huggingface_hub"} & set(sys.modules)
    assert not heavy, heavy
"""
    answer = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("usage: headrace")


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"headrace {headrace.__version__}\n"


def test_python_m_headrace_is_the_command() -> None:
    answer = subprocess.run([sys.executable, "-m", "headrace", "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout == f"headrace {headrace.__version__}\n"


def test_without_a_command_the_help_is_shown_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys)
    assert status == 2
    assert text.startswith("usage: headrace")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "headrace: unknown command 'rnu'; did you mean run?; see headrace --help"),
        (["--verion"], "headrace: unknown option --verion; did you mean --version?; see headrace --help"),
        (
            ["run", "in", "-o", "out", "--model", "m", "--max-token=5"],
            "headrace: unknown option --max-token; did you mean --max-tokens?; see headrace run --help",
        ),
        (["run", "--modle", "m"], "headrace: unknown option --modle; did you mean --model?; see headrace run --help"),
        (["run", "--zzz"], "headrace: unknown option --zzz; see headrace run --help"),
        (
            ["run", "in", "-o", "out"],
            "headrace: the following arguments are required: --model/-m; see headrace run --help",
        ),
        (
            ["run", "in", "-o", "out", "--model", "m", "--limit", "0"],
            "headrace: argument --limit: '0'; expected a whole number of at least 1; see headrace run --help",
        ),
        (
            ["run", "in", "-o", "out", "--model", "m", "--memory", "lots"],
            "headrace: argument --memory: not a size: 'lots'; expected something like 6GiB, 500MB or 1048576; "
            "see headrace run --help",
        ),
        (
            ["run", "in", "-o", "out", "--model", "m", "--disk-bandwidth", "1GB"],
            "headrace: argument --disk-bandwidth: not a rate: '1GB'; expected something like 1GB/s or 500MiB/s; "
            "see headrace run --help",
        ),
        (
            ["generate", "--model", "m", "--top-p", "2", "x"],
            "headrace: --top-p: top_p is 2.0; expected a number from 0 to 1",
        ),
        (["bench"], "headrace: the following arguments are required: COMMAND; see headrace bench --help"),
        (
            ["bench", "latncy"],
            "headrace: unknown command 'bench latncy'; did you mean bench latency?; see headrace bench --help",
        ),
        (
            ["bench", "--modle", "curve"],
            "headrace: unknown option --modle; see headrace bench --help",
        ),
        (
            ["eval", "perplexity", "--modle", "m"],
            "headrace: unknown option --modle; did you mean --model?; see headrace eval perplexity --help",
        ),
        (["run", "in", "more", "-o", "o", "-m", "m"], "headrace: unrecognized arguments: more; see headrace --help"),
        (
            ["run", "no-such-file", "-o", "out", "-m", "m"],
            "headrace: cannot read no-such-file: No such file or directory; give a file of rows, or - for stdin",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert said(capsys, *arguments) == (2, message + "\n")


def raising(error: BaseException) -> object:
    def run(args: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BudgetError("6 GiB would do"), 2, "headrace: 6 GiB would do\n"),
        (RequestError("too long", code="context_length_exceeded"), 2, "headrace: too long\n"),
        (SweepError("the device is gone"), 1, "headrace: the device is gone\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_of_a_command_becomes_one_line_and_a_status(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr(run_command, "run", raising(error))
    assert said(capsys, "run", "in", "-o", "out", "--model", "m") == (status, message)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, "run", "no-such-file", "-o", "out", "--model", "m", "--debug")
    assert status == 2
    assert text.startswith("Traceback") and text.endswith("give a file of rows, or - for stdin\n")


def test_underscores_in_options_are_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "no_such_file", "-o", "out", "--model", "m", "--max_num_seqs=3", "--top_k", "5"]
    assert said(capsys, *arguments)[1].startswith("headrace: cannot read no_such_file")


def test_native_windows_is_refused() -> None:
    with pytest.raises(PlatformError, match="WSL2"):
        cli.refuse_windows("nt")
    cli.refuse_windows("posix")


def test_every_option_of_every_command_has_help() -> None:
    assert list(silent_options(cli.build_parser())) == []


def silent_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from silent_options(command)
        elif not action.help:
            yield f"{parser.prog} {action.dest}"
