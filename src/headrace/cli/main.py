"""Entry point of the `headrace` command: finds the subcommand, runs it, turns errors into one line and a status."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from types import ModuleType

import headrace
from headrace.cli import cache, chat, doctor, generate, inspect, quantize, run
from headrace.cli.parsing import CommandParser, dashed, did_you_mean
from headrace.errors import HeadraceError, OptionError, PlatformError, RequestError, UsageError

# A command's module has SUMMARY, DESCRIPTION, EPILOG, add_arguments(parser) and run(args) -> exit status. None imports
# anything heavy at its top, so that help is instant.
COMMANDS: dict[str, ModuleType] = {
    "run": run,
    "generate": generate,
    "chat": chat,
    "inspect": inspect,
    "doctor": doctor,
    "cache": cache,
    "quantize": quantize,
}

_FAILED, _MISTAKE, _INTERRUPTED = 1, 2, 130


def build_parser() -> CommandParser:
    """Returns the parser of the whole command line."""
    return _build()[0]


def _build() -> tuple[CommandParser, dict[str, CommandParser]]:
    """The whole parser, and those of its commands by name."""
    parser = CommandParser(prog="headrace", description=(headrace.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"headrace {headrace.__version__}")
    actions = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    commands: dict[str, CommandParser] = {}
    for name, module in COMMANDS.items():
        commands[name] = actions.add_parser(
            name,
            help=module.SUMMARY,
            description=textwrap.fill(" ".join(module.DESCRIPTION.split()), 100),
            epilog=module.EPILOG.strip(),
        )
        module.add_arguments(commands[name])
    return parser, commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    0: all went well. 1: something failed on the way. 2: the user's mistake, told in one line. 130: Ctrl-C or SIGTERM.
    """
    words = dashed(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # A service manager's way of ending a job does what Ctrl-C does, wherever that is held back or caught.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        refuse_windows(os.name)
        return _dispatch(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # Who read our stdout has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except HeadraceError as error:
        if debug:
            traceback.print_exc()
        print(f"headrace: {error}", file=sys.stderr)
        return _MISTAKE if isinstance(error, UsageError | RequestError) else _FAILED


def refuse_windows(os_name: str) -> None:
    """Says where Headrace runs.

    Raises:
        PlatformError: `os_name` is native Windows'.
    """
    if os_name == "nt":
        raise PlatformError("native Windows is not supported; install Headrace inside WSL2, where it runs as on Linux")


def _dispatch(words: list[str]) -> int:
    parser, commands = _build()
    if not words:
        parser.print_help(sys.stderr)
        return _MISTAKE
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    parser.check_options(words[:at])
    if at < len(words):
        name = words[at]
        if name not in commands:
            raise OptionError(f"unknown command {name!r}{did_you_mean(name, commands)}; see headrace --help")
        commands[name].check_options(words[at + 1 :])
    args = parser.parse_args(words)
    return int(COMMANDS[args.command].run(args))


if __name__ == "__main__":
    sys.exit(main())
