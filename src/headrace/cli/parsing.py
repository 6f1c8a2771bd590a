"""argparse, with mistakes told in one line and the nearest right word."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from headrace.errors import OptionError

# A prompt like "--well, hello" is none.
_OPTION_NAME = re.compile(r"--[A-Za-z0-9][A-Za-z0-9_-]*")


class CommandParser(argparse.ArgumentParser):
    """A parser that raises instead of printing its usage and leaving."""

    def __init__(self, prog: str | None = None, *, description: str | None = None, epilog: str | None = None) -> None:
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong in one line.

        Raises:
            OptionError: always.
        """
        raise OptionError(f"{message}; see {self.prog} --help")

    def long_options(self) -> list[str]:
        """Returns every `--option` that the parser knows."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def check_options(self, arguments: Sequence[str]) -> None:
        """Looks for options that do not exist before anything else is found wrong.

        Raises:
            OptionError: there is one; the message has the nearest that exists.
        """
        known = self.long_options()
        for argument in arguments:
            if argument == "--":
                return
            name = argument.partition("=")[0]
            if _OPTION_NAME.fullmatch(name) and name not in known:
                self.error(f"unknown option {name}{did_you_mean(name, known)}")


def dashed(arguments: Iterable[str]) -> list[str]:
    """Returns the arguments with `_` in option names as `-`: both spellings are one option."""
    result: list[str] = []
    arguments = iter(arguments)
    for argument in arguments:
        if argument == "--":
            return [*result, argument, *arguments]
        name, equals, value = argument.partition("=")
        if _OPTION_NAME.fullmatch(name):
            argument = name.replace("_", "-") + equals + value
        result.append(argument)
    return result


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean --nearest?`, or nothing where nothing is near."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def whole_number(low: int) -> type[int]:
    """Returns an argparse type for whole numbers of at least `low`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least {low}")
        return value

    return parse  # type: ignore[return-value]
