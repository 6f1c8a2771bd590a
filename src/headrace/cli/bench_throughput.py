"""`headrace bench throughput`: how many tokens and rows per second, when there are many."""

from __future__ import annotations

import argparse

from headrace.cli.bench_options import add_bench_options, measure_rows, print_json
from headrace.cli.parsing import whole_number

SUMMARY = "measure tokens per second over many rows"
DESCRIPTION = """
Gives rows of random tokens to the model all at once, as a job does, and measures tokens and requests per second, the
times of the rows, peak memory, and which shares of memory's bandwidth (MBU) and of the processor's rate (MFU) that
takes. What each measure means: docs/measuring.md.
"""
EPILOG = """
headrace bench throughput --model ./folder --prompt-tokens 512 --max-tokens 32 --num-rows 64
headrace bench throughput --model ./large --memory 5GiB --repeats 1 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--num-rows", type=whole_number(1), default=64, metavar="N", help="rows of each run (default: 64)"
    )
    add_bench_options(parser, repeats=3)


def run(args: argparse.Namespace) -> int:
    """Measures, prints what was found, and returns the exit status."""
    report = measure_rows(args, [args.num_rows])
    if args.json:
        print_json(report)
        return 0

    from headrace.bench.tables import latency_table, show, summary_table

    show(summary_table(report), latency_table(report.points[0].measures))
    return 0
