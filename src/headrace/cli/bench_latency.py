"""`headrace bench latency`: how long rows take that run together."""

from __future__ import annotations

import argparse

from headrace.cli.bench_options import add_bench_options, measure_rows, print_json
from headrace.cli.parsing import whole_number

SUMMARY = "measure how long a batch of rows takes"
DESCRIPTION = """
Gives one batch of rows of random tokens to the model at a time, again and again, and measures the time to the first
token, from each token to the next and to the last: mean, standard deviation, and the 50th, 95th and 99th percentile;
peak memory, and the shares of memory's bandwidth and of the processor's rate. What each measure means:
docs/measuring.md.
"""
EPILOG = """
headrace bench latency --model ./folder --prompt-tokens 512 --max-tokens 32 --batch-size 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=1, metavar="N", help="rows that run together (default: 1)"
    )
    add_bench_options(parser, repeats=10)


def run(args: argparse.Namespace) -> int:
    """Measures, prints what was found, and returns the exit status."""
    report = measure_rows(args, [args.batch_size], at_once="--batch-size")
    if args.json:
        print_json(report)
        return 0

    from headrace.bench.tables import latency_table, show, summary_table

    show(latency_table(report.points[0].measures), summary_table(report))
    return 0
