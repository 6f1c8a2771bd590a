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
from headrace.cli import (
    bench_curve,
    bench_latency,
    bench_throughput,
    cache,
    chat,
    doctor,
    eval_perplexity,
    generate,
    inspect,
    quantize,
    run,
)
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
    "bench throughput": bench_throughput,
    "bench latency": bench_latency,
    "bench curve": bench_curve,
    "eval perplexity": eval_perplexity,
    "cache": cache,
    "quantize": quantize,
}
# What the commands of two words have in common, by their first.
GROUPS = {
    "bench": "measure how fast a model runs here",
    "eval": "measure how good a model is",
}

_FAILED, _MISTAKE, _INTERRUPTED = 1, 2, 130


def build_parser() -> CommandParser:
    """Returns the parser of the whole command line."""
    return _build()[0]


def _build() -> tuple[CommandParser, dict[str, CommandParser]]:
    """The whole parser, and those of its commands and of groups of them by name."""
    parser = CommandParser(prog="headrace", description=(headrace.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"headrace {headrace.__version__}")
    places = {"": parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")}
    parsers: dict[str, CommandParser] = {}
    for name, module in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        if group not in places:
            parsers[group] = places[""].add_parser(group, help=GROUPS[group])
            places[group] = parsers[group].add_subparsers(
                dest="measure", metavar="COMMAND", required=True, title="commands", help="what to measure"
            )
        parsers[name] = places[group].add_parser(
            word,
            help=module.SUMMARY,
            description=textwrap.fill(" ".join(module.DESCRIPTION.split()), 100),
            epilog=module.EPILOG.strip(),
        )
        module.add_arguments(parsers[name])
    return parser, parsers


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
    parser, parsers = _build()
    if not words:
        parser.print_help(sys.stderr)
        return _MISTAKE
    name, current, rest = "", parser, words
    while name not in COMMANDS:
        at = next((i for i, word in enumerate(rest) if not word.startswith("-")), len(rest))
        current.check_options(rest[:at])
        if at == len(rest):
            break
        longer = f"{name} {rest[at]}".strip()
        if longer not in parsers:
            raise OptionError(f"unknown command {longer!r}{did_you_mean(longer, parsers)}; see {current.prog} --help")
        name, current, rest = longer, parsers[longer], rest[at + 1 :]
    else:
        current.check_options(rest)
    args = parser.parse_args(words)  # where no command is named, this says so, or shows the help that was asked for
    return int(COMMANDS[name].run(args))


if __name__ == "__main__":
    sys.exit(main())
