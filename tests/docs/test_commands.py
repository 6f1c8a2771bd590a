"""docs/cli.md is what the parsers say, and commands in the documentation can be typed as they stand there."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.main import build_parser
from headrace.errors import OptionError
from tests.docs.pages import ROOT, commands, load_script, pages

write_cli_docs = load_script("write_cli_docs")
COMMANDS = sorted(write_cli_docs.commands(build_parser()))


def test_the_page_of_commands_is_up_to_date() -> None:
    expected = write_cli_docs.page(build_parser())
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == expected, "run `make docs`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_says_what_it_does(command: str) -> None:
    parser = write_cli_docs.commands(build_parser())[command]
    silent = [write_cli_docs.spelling(action) for action in parser._actions if not action.help]
    assert not silent


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_documentation_are_accepted_by_the_parser(page: Path) -> None:
    refused = [f"{place}: {reason}" for place, words in commands(page) if (reason := why_refused(words))]
    assert not refused, "\n".join(refused)


def why_refused(words: list[str]) -> str | None:
    # A command that is only named (`headrace run`, `headrace bench`) lacks its arguments: there is no more to check.
    if any(f"{command} ".startswith(f"{' '.join(words)} ") for command in COMMANDS):
        return None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            build_parser().parse_args(words)
    except OptionError as error:
        return str(error)
    except SystemExit as end:
        return f"status {end.code}" if end.code else None
    return None


def test_help_comes_without_torch() -> None:
    program = """
import contextlib, io, sys
from headrace.cli.main import main
for words in (["--help"], *([*command.split(), "--help"] for command in sys.argv[1:])):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main(words)
    assert "usage" in text.getvalue().lower(), words
heavy = sorted({"torch", "transformers", "numpy"} & set(sys.modules))
assert not heavy, f"--help imported {heavy}"
"""
    answer = subprocess.run([sys.executable, "-c", program, *COMMANDS], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
