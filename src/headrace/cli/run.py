"""`headrace run`: a file of rows in, a file of answers out."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headrace.cli.options import (
    add_common_options,
    add_model_options,
    add_sampling_options,
    describe_sampling,
    open_model,
    sampling_params,
)
from headrace.cli.parsing import whole_number
from headrace.errors import OptionError

if TYPE_CHECKING:
    from headrace.jobs.progress import JobProgress
    from headrace.jobs.quality import Answers
    from headrace.jobs.row_input import RowInput
    from headrace.jobs.rows import Row, RowCensus
    from headrace.jobs.runner import JobOutcome

SUMMARY = "answer a file of rows"
DESCRIPTION = """
Answers every row of INPUT into OUTPUT: one line each, in their order, errors included. Rows are JSON lines of the
OpenAI Batch shape, or {"prompt": ...} or {"messages": ...} with sampling keys. A row's own keys come before the
options here. Exit status: 0 all rows answered, 1 some failed, 2 a mistake in the command, 130 Ctrl-C or SIGTERM
(finished rows are in the output).
"""
EPILOG = """
headrace run orders.jsonl -o answers.jsonl --model demo
zcat rows.jsonl.gz | headrace run - -o - --model ./folder --max-tokens 64 --temperature 0 > answers.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("input", metavar="INPUT", help="file of rows; - is stdin")
    parser.add_argument("-o", "--output", required=True, metavar="OUTPUT", help="file of answers; - is stdout")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT where it holds something")
    parser.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first N rows")
    parser.add_argument(
        "--sample-quality",
        type=whole_number(1),
        metavar="N",
        help="with fewer bits: answer N rows in full precision first, and say how far the answers agree",
    )
    parser.add_argument("--report", metavar="FILE", help="write the job's figures to FILE as JSON")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens_default="1024")
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the job and returns its exit status."""
    from rich.console import Console

    from headrace.jobs.ordered_output import OrderedOutput
    from headrace.jobs.progress import ConsoleProgress, SilentProgress, report_table
    from headrace.jobs.quality import agreement, answers, evenly_drawn
    from headrace.jobs.report import ReportFile
    from headrace.jobs.requests import DEFAULT_MAX_TOKENS
    from headrace.jobs.row_input import RowInput
    from headrace.jobs.rows import RowReader, take_census
    from headrace.jobs.runner import run_job, write_errors

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    progress: JobProgress = SilentProgress(console) if args.quiet else ConsoleProgress(console)
    defaults = sampling_params(args)
    row_input = RowInput(args.input)
    output = OrderedOutput(args.output, overwrite=args.overwrite)
    output.check(input_path=row_input.path)
    report_file = None if args.report is None else ReportFile(args.report)
    reader = RowReader(defaults=defaults, limit=args.limit)

    num_rows = expected_rows = typical_row_tokens = None
    nothing_to_ask = False
    if row_input.path is not None:
        with row_input.open() as stream:
            census = take_census(stream, defaults=defaults, limit=args.limit)
        _tell_census(row_input, census, progress, quiet=args.quiet)
        num_rows, expected_rows = census.num_rows, census.num_answers
        typical_row_tokens = census.typical_tokens(args.max_tokens or DEFAULT_MAX_TOKENS)
        nothing_to_ask = census.num_errors == census.num_rows
    sample: list[Row] = []
    if args.sample_quality is not None:
        _check_sampling_of_quality(args, num_rows)
        with row_input.open() as stream:
            sample = evenly_drawn(
                RowReader(defaults=defaults, limit=args.limit).read(stream), num_rows or 0, args.sample_quality
            )
    in_full: Answers = {}
    if sample:
        progress.note(f"answering {len(sample)} rows in full precision first")
        with open_model(args, in_full_precision=True, expected_rows=len(sample)) as model:
            in_full = answers(model, sample)
    if nothing_to_ask:
        with output, row_input.open() as stream:
            outcome = write_errors(rows=reader.read(stream), output=output)
    else:
        with (
            open_model(args, expected_rows=expected_rows, typical_row_tokens=typical_row_tokens) as model,
            output,
            row_input.open() as stream,
        ):
            if not args.quiet:
                room = max(1, model.max_model_len - 1)
                sampling = defaults.resolve(model.defaults, default_max_tokens=DEFAULT_MAX_TOKENS, room=room)
                max_tokens = str(args.max_tokens or f"{DEFAULT_MAX_TOKENS:,} (default)")
                progress.note(model.description)
                progress.note(describe_sampling(sampling, max_tokens=max_tokens))
            if sample:
                progress.note(str(agreement(in_full, answers(model, sample))))
            outcome = run_job(
                model=model, rows=reader.read(stream), output=output, progress=progress, num_rows=num_rows
            )
    if report_file is not None:
        report_file.write(outcome.report)
    if not args.quiet:
        console.print(report_table(outcome.report))
    return _exit_status(outcome, output.name, num_rows, progress)


def _check_sampling_of_quality(args: argparse.Namespace, num_rows: int | None) -> None:
    if (
        args.quantization == "none"
        and not args.allow
        and args.kv_cache_dtype == "auto"
        and not (args.compress_weight or args.compress_cache)
    ):
        raise OptionError(
            "--sample-quality compares with full precision, in which this runs; give --quantization, --allow or "
            "--kv-cache-dtype"
        )
    if num_rows is None:
        raise OptionError("--sample-quality reads rows before the job does; give a file, not stdin")


def _tell_census(row_input: RowInput, census: RowCensus, progress: JobProgress, *, quiet: bool) -> None:
    rows = "1 row" if census.num_rows == 1 else f"{census.num_rows:,} rows"
    if census.first_error is None:
        if not quiet:
            progress.note(f"{row_input.name}: {rows}")
        return
    first = census.first_error
    progress.note(
        f"warning: {row_input.name}: {census.num_errors:,} of {rows} cannot be asked and will be error lines; "
        f"first: line {first.key.line}: {first.error}"
    )


def _exit_status(outcome: JobOutcome, output_name: str, num_rows: int | None, progress: JobProgress) -> int:
    report = outcome.report
    if outcome.interrupted:
        of_all = "" if num_rows is None else f" of {num_rows:,}"
        progress.note(f"interrupted: {report.num_rows:,}{of_all} rows are finished and in {output_name}")
        return 130
    if report.num_failed:
        progress.note(f"{report.num_failed:,} of {report.num_rows:,} rows failed; their lines in {output_name} say why")
        return 1
    return 0
