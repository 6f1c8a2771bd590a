"""`headrace generate`: one prompt, its continuation on stdout as it comes."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import replace

from headrace.cli.options import (
    add_common_options,
    add_model_options,
    add_sampling_options,
    describe_sampling,
    open_model,
    sampling_params,
)
from headrace.errors import OptionError
from headrace.units import format_seconds

SUMMARY = "continue one prompt"
DESCRIPTION = """
Continues PROMPT, or all of stdin, as it is: no chat template is applied (`headrace chat` does that). The text goes to
stdout as it comes.
"""
EPILOG = """
headrace generate --model ./folder --max-tokens 32 "Once upon a time"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="text to continue; without it or -, all of stdin")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens_default="the rest of the context")
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generates and returns the exit status."""
    prompt = _read_prompt(args.prompt)
    params = sampling_params(args)
    with open_model(args, expected_rows=1) as model:
        room = model.max_model_len - len(model.tokenizer.encode(prompt))
        sampling = params.resolve(model.defaults, default_max_tokens=max(1, room), room=room)
        if not args.quiet:
            origin = "" if args.max_tokens else " (the rest of the context)"
            _say(model.description)
            _say(describe_sampling(sampling, max_tokens=f"{sampling.max_tokens}{origin}"))
        if model.tokenizer.has_chat_template:
            _say(f"warning: {model.model_name} is a chat model and gets the prompt as it is; use headrace chat")
        num_tokens = 0
        text = ""
        start = time.monotonic()
        pieces = model.stream(prompt, replace(params, max_tokens=sampling.max_tokens))
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    num_tokens += len(piece.token_ids)
                    text = piece.text or text
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
        finally:
            if not text.endswith("\n"):
                sys.stdout.write("\n")
                sys.stdout.flush()
        if not args.quiet:
            seconds = time.monotonic() - start
            _say(f"{num_tokens} tokens in {format_seconds(seconds)}, {num_tokens / max(seconds, 1e-9):,.1f} tokens/s")
    return 0


def _read_prompt(argument: str | None) -> str:
    if argument not in (None, "-"):
        return str(argument)
    if argument is None and sys.stdin.isatty():
        raise OptionError("no prompt: give it as the argument, or on stdin")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"the prompt on stdin is not UTF-8 at byte {error.start + 1}") from None


def _say(message: str) -> None:
    print(message, file=sys.stderr)
