"""Writes docs/cli.md from the commands' own parsers.

python scripts/write_cli_docs.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from headrace.cli.main import build_parser

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"

_HEAD = """\
# Commands

Written by `make docs` from the commands' own help. Data goes to stdout and progress to stderr; `-` stands for stdin or
stdout. The exit status is 0 when all went well, 1 when something failed on the way, 2 for a mistake in the command.
"""


def main() -> None:
    PAGE.write_text(page(build_parser()), encoding="utf-8")
    print(f"wrote {PAGE}")


def page(parser: argparse.ArgumentParser) -> str:
    """Returns the whole page: the options of `headrace` itself, then one section per command."""
    sections = [_HEAD, *options_table(parser)]
    for name, command in commands(parser).items():
        sections += ["", f"## headrace {name}", ""]
        if command.description:
            sections += [" ".join(command.description.split()), ""]
        sections += options_table(command)
        if command.epilog:
            sections += ["", "```", command.epilog.strip(), "```"]
    return "\n".join(sections) + "\n"


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the parser of each command by its name; those of commands of two words by both."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                inner = {f"{word} {name}": parser for name, parser in commands(command).items()}
                found |= inner or {word: command}
    return found


def options_table(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "| argument | meaning |"
    yield "|---|---|"
    formatter = argparse.HelpFormatter(parser.prog)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        meaning = " ".join(formatter._expand_help(action).split()) if action.help else ""
        yield f"| `{spelling(action)}` | {meaning} |".replace("`|`", "`\\|`")


def spelling(action: argparse.Action) -> str:
    """Returns `-o, --output FILE`, or the name of a positional argument."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    return f"{names} {value}"


if __name__ == "__main__":
    main()
