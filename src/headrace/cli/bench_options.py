"""Options of the commands that measure a workload, and what they become."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from headrace.cli.options import add_common_options, add_model_options, open_model
from headrace.cli.parsing import whole_number
from headrace.errors import OptionError

if TYPE_CHECKING:
    from headrace.bench.report import Report
    from headrace.engine.llm import LLM


def add_bench_options(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    """Adds what the rows are like, how often they run, and which model answers them."""
    group = parser.add_argument_group("workload")
    _add_number(group, "--prompt-tokens", 512, "random tokens of each prompt", low=1)
    _add_number(group, "--max-tokens", 32, "tokens of each answer, exactly", low=1)
    _add_number(group, "--warmup", 1, "runs before those that count", low=0)
    _add_number(group, "--repeats", repeats, "runs that count, each with other prompts", low=1)
    add_json_option(parser)
    add_model_options(parser, speculates=False)
    add_common_options(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON; units are in the names of the fields"
    )


def _add_number(group: argparse._ArgumentGroup, name: str, default: int, help: str, *, low: int) -> None:
    group.add_argument(name, type=whole_number(low), default=default, metavar="N", help=f"{help} (default: {default})")


def measure_rows(args: argparse.Namespace, nums_rows: Sequence[int], *, at_once: str | None = None) -> Report:
    """Measures workloads of so many rows each, one after the other, on the model that the options describe.

    Args:
        at_once: the option that asks for all rows of a workload to run at a time.
    """
    most = max(nums_rows)
    if at_once is not None and args.max_num_seqs is not None and args.max_num_seqs < most:
        raise OptionError(
            f"{at_once} asks for {most} rows at a time and --max-num-seqs allows {args.max_num_seqs}; "
            "leave --max-num-seqs out"
        )

    from headrace.bench.report import measure
    from headrace.bench.workload import Workload

    workloads = [
        Workload(prompt_tokens=args.prompt_tokens, max_tokens=args.max_tokens, num_rows=num_rows, seed=args.seed)
        for num_rows in nums_rows
    ]

    def opened() -> LLM:
        return open_model(
            args,
            expected_rows=most,
            typical_row_tokens=workloads[0].row_tokens,
            max_num_seqs=None if at_once is None else most,
        )

    return measure(opened, workloads, warmup=args.warmup, repeats=args.repeats, note=noting(args))


def print_json(found: Report) -> None:
    """Prints a report as JSON to stdout."""
    print(json.dumps(dataclasses.asdict(found), indent=2))


def noting(args: argparse.Namespace) -> Callable[[str], None]:
    """Returns what tells progress on stderr, if it shall be told."""
    return _ignore if args.quiet else _say


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _ignore(message: str) -> None:
    """Nothing is shown."""
