"""`headrace eval perplexity`: how well a model knows a text."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from headrace.cli.bench_options import add_json_option, noting
from headrace.cli.options import add_common_options, add_model_options, open_model
from headrace.cli.parsing import whole_number
from headrace.errors import OptionError

SUMMARY = "measure the perplexity of a text"
DESCRIPTION = """
Reckons how likely the model finds the text of FILE, token by token, in windows that slide over it as on transformers'
page on perplexity: every window has --context tokens, begins --stride tokens after the one before, and only tokens
that no window had before count. Says perplexity, negative log-likelihood per token in nats, and bits per byte.
"""
EPILOG = """
headrace eval perplexity --model ./folder --text wiki.txt
headrace eval perplexity --model ./folder --text wiki.txt --context 1024 --stride 512 --dtype float32 --json
"""
_TOLD_WINDOWS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--text", required=True, metavar="FILE", help="file of text in UTF-8; - is stdin")
    parser.add_argument(
        "--context",
        type=whole_number(2),
        metavar="N",
        help="tokens of a window (default: 2048, or what the model holds where that is less)",
    )
    parser.add_argument(
        "--stride",
        type=whole_number(1),
        metavar="N",
        help="tokens from the beginning of a window to that of the next (default: half of the context)",
    )
    add_json_option(parser)
    add_model_options(parser)
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Reckons, prints what was found, and returns the exit status."""
    text = _read_text(args.text)

    from headrace.bench.perplexity import DEFAULT_CONTEXT, SCORED_AT_ONCE, measure_perplexity
    from headrace.bench.report import describe_subject
    from headrace.bench.tables import perplexity_table, show

    note = noting(args)
    context = args.context or DEFAULT_CONTEXT
    num_at_once = 1 + -(-SCORED_AT_ONCE // context)
    with open_model(
        args,
        expected_rows=num_at_once,
        typical_row_tokens=context,
        max_num_seqs=SCORED_AT_ONCE,
        enable_prefix_caching=False,
    ) as model:
        note(model.description)
        subject = describe_subject(model)

        def window_done(number: int, total: int) -> None:
            if number % -(-total // _TOLD_WINDOWS) == 0 or number == total:
                note(f"{number:,} of {total:,} windows")

        found = measure_perplexity(model, text, context=args.context, stride=args.stride, window_done=window_done)
    if args.json:
        print(json.dumps({**dataclasses.asdict(subject), **dataclasses.asdict(found)}, indent=2))
    else:
        show(perplexity_table(subject, found))
    return 0


def _read_text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise OptionError(f"--text {name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"--text {name} is not UTF-8 at byte {error.start + 1}") from None
