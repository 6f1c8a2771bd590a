"""`headrace bench curve`: latency against throughput, over numbers of rows at a time."""

from __future__ import annotations

import argparse

from headrace.cli.bench_options import add_bench_options, measure_rows, noting, print_json
from headrace.cli.parsing import whole_number

SUMMARY = "measure latency against throughput"
DESCRIPTION = """
Measures batches of several sizes one after the other, as `bench latency` does, on one model, and writes how latency
grows with throughput to OUTPUT: the picture to a name that ends with .png (which needs the extra headrace[plot]), a
table to .csv, everything to .json. What each measure means: docs/measuring.md.
"""
EPILOG = """
headrace bench curve --model ./folder --prompt-tokens 512 --max-tokens 32 -o curve.png
headrace bench curve --model ./folder --batch-sizes 1 16 64 256 -o curve.csv
"""
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUTPUT", help="file to write: .png, .csv or .json; replaced"
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        type=whole_number(1),
        default=list(_BATCH_SIZES),
        metavar="N",
        help=f"rows that run together (default: {' '.join(map(str, _BATCH_SIZES))})",
    )
    add_bench_options(parser, repeats=3)


def run(args: argparse.Namespace) -> int:
    """Measures, prints and writes what was found, and returns the exit status."""
    from headrace.bench.curve import CurveFile

    file = CurveFile(args.output)
    report = measure_rows(args, sorted(set(args.batch_sizes)), at_once="--batch-sizes")
    file.write(report)
    noting(args)(f"the curve is in {args.output}")
    if args.json:
        print_json(report)
        return 0

    from headrace.bench.tables import curve_table, show

    show(curve_table(report))
    return 0
