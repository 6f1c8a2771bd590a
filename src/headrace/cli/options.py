"""Options that several commands share, and what they become."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from headrace.cli.flexgen import add_flexgen_options, flexgen_options
from headrace.cli.parsing import whole_number
from headrace.engine.options import KVCacheDtype, Quantization
from headrace.errors import OptionError, RequestError
from headrace.units import parse_bytes, parse_rate

if TYPE_CHECKING:
    from headrace.engine.llm import LLM
    from headrace.sampling.parameters import ResolvedSampling, SamplingParams
    from headrace.sampling.structured_outputs import StructuredOutputs


_MODEL_OPTIONS = (
    "revision",
    "dtype",
    "quantization",
    "allow",
    "device",
    "memory",
    "gpu_memory",
    "disk",
    "disk_bandwidth",
    "load_format",
    "kv_cache_dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "speculate",
    "trust_remote_code",
    "chat_template",
    "trace",
    "seed",
)
"""Arguments of `LLM` that are options of the same name."""


def add_model_options(parser: argparse.ArgumentParser, *, speculates: bool = True) -> None:
    """Adds what decides which model runs and where.

    Args:
        speculates: guessing tokens is the default, which the user may turn off; else it is one to turn on.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", "-m", required=True, help="a folder, a Hugging Face name (org/name or org/name@revision), or demo"
    )
    group.add_argument("--revision", help="branch, tag or commit of a Hugging Face model")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="type of weights and activations (default: auto, the checkpoint's own; float32 where that is faster)",
    )
    group.add_argument(
        "--quantization",
        choices=get_args(Quantization),
        default="none",
        help="linear layers in 8 bits (weights and tokens; -outliers: but for large numbers) or 4 (default: none)",
    )
    group.add_argument(
        "--allow",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="LIST",
        help="in place of --quantization, such as int8,int4: of the model as it is and of these the fastest that fits "
        "into memory, or where none does the smallest",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, or simulated:SIZE,RATE for tests (default: auto, CUDA where there is one)",
    )
    group.add_argument("--memory", type=_size, metavar="SIZE", help="memory for the whole process, like 6GiB")
    group.add_argument(
        "--disk",
        metavar="FOLDER[:SIZE]",
        help="for copies of weights, and KV beyond memory (default: $HEADRACE_CACHE or ~/.cache/headrace)",
    )
    group.add_argument(
        "--disk-bandwidth",
        type=_rate,
        metavar="RATE",
        help="read streamed weights at most this fast, like 500MB/s, to leave the rest of the disk to others",
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that comes with the checkpoint; it can do all that you can, so read it first",
    )
    group.add_argument("--gpu-memory", type=_size, metavar="SIZE", help="memory to use of the GPU, like 14GiB")
    group.add_argument(
        "--load-format",
        default="auto",
        choices=("auto", "dummy"),
        help="dummy: random weights from the configuration alone, for measurements",
    )
    group.add_argument(
        "--kv-cache-dtype",
        default="auto",
        choices=get_args(KVCacheDtype),
        help="keep keys and values in codes of 8 or 4 bits, in about half or a quarter of the memory of bfloat16; "
        "answers differ (default: auto, the type that the model runs in)",
    )
    group.add_argument("--max-model-len", type=whole_number(1), metavar="N", help="context to use, in tokens")
    group.add_argument("--max-num-seqs", type=whole_number(1), metavar="N", help="sequences that run at once")
    group.add_argument("--max-num-batched-tokens", type=whole_number(1), metavar="N", help="tokens of one sweep")
    if speculates:
        group.add_argument(
            "--no-speculation",
            dest="speculate",
            action="store_false",
            help="compute no guesses of what follows, as is done while sweeps wait for weights; it changes no token",
        )
    else:
        group.add_argument(
            "--speculation",
            dest="speculate",
            action="store_true",
            help="compute guesses of what follows while sweeps wait for weights; answers to random tokens repeat "
            "themselves, so that more of them are right than in real answers",
        )
    group.add_argument(
        "--chat-template", metavar="FILE", help="Jinja template in place of the model's own, or a name of one of these"
    )
    group.add_argument(
        "--trace",
        metavar="FILE",
        help="write what happened when to FILE, for https://ui.perfetto.dev or chrome://tracing",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="where sampling starts: the same seed, the same answers (default: 0)"
    )
    add_flexgen_options(parser)


def add_sampling_options(parser: argparse.ArgumentParser, *, max_tokens_default: str) -> None:
    """Adds how tokens are drawn. What is not given is left to the model's `generation_config.json`."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-tokens",
        type=whole_number(1),
        metavar="N",
        help=f"tokens to generate at most (default: {max_tokens_default})",
    )
    group.add_argument("--min-tokens", type=whole_number(0), metavar="N", help="tokens before an answer may end")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token")
    group.add_argument("--top-p", type=float, metavar="P", help="smallest set of tokens with this probability")
    group.add_argument("--top-k", type=int, metavar="K", help="this many most likely tokens; 0 is all")
    group.add_argument("--min-p", type=float, metavar="P", help="tokens this likely relative to the likeliest")
    group.add_argument("--typical-p", type=float, metavar="P", help="tokens of about average information, this likely")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: against tokens that occurred")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="OpenAI's: tokens of the answer, once")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="OpenAI's: for every time they occurred")
    group.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer, not part of it; repeatable")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the model's end token")
    group = parser.add_argument_group("form of the answer")
    group.add_argument("--json-schema", metavar="FILE", help="every answer is JSON that this schema describes")
    group.add_argument("--regex", metavar="REGEX", help="every answer matches this regular expression as a whole")
    group.add_argument(
        "--choice", action="append", metavar="TEXT", help="every answer is this text, or another --choice"
    )
    group.add_argument("--grammar", metavar="FILE", help="every answer follows this grammar (Lark, as in llguidance)")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds what every command has."""
    parser.add_argument("--quiet", "-q", action="store_true", help="only warnings and errors on stderr")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Returns the sampling options that were given; the rest is open.

    Raises:
        OptionError: a value cannot be.
    """
    from headrace.sampling.parameters import SamplingParams

    names = (
        "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "typical_p",
        "repetition_penalty", "presence_penalty", "frequency_penalty", "stop", "ignore_eos",
    )  # fmt: skip
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    structure = _structure(args)
    try:
        return SamplingParams(**given, structured_outputs=structure)
    except RequestError as error:
        option = f"--{error.param.replace('_', '-')}" if error.param else "sampling"
        raise OptionError(f"{option}: {error}") from None


def _structure(args: argparse.Namespace) -> StructuredOutputs | None:
    from headrace.sampling.guidance import check_structure
    from headrace.sampling.structured_outputs import StructuredOutputs

    texts = {
        "json_schema": _content("--json-schema", args.json_schema),
        "regex": args.regex,
        "choice": args.choice,
        "grammar": _content("--grammar", args.grammar),
    }
    given = {name: text for name, text in texts.items() if text is not None}
    if not given:
        return None
    try:
        structure = StructuredOutputs(**{name.removesuffix("_schema"): text for name, text in given.items()})
        check_structure(structure)
    except RequestError as error:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError(f"{options}: {error}") from None
    return structure


def _content(option: str, file: str | None) -> str | None:
    try:
        return None if file is None else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{option} {file} cannot be read: {error}") from None


def open_model(
    args: argparse.Namespace,
    *,
    expected_rows: int | None = None,
    typical_row_tokens: int | None = None,
    max_num_seqs: int | None = None,
    enable_prefix_caching: bool = True,
    in_full_precision: bool = False,
) -> LLM:
    """Returns the model that the options describe, loaded; the caller closes it.

    Args:
        max_num_seqs: where no option says it.
        in_full_precision: whatever the options say of fewer bits.
    """
    from headrace.engine.llm import LLM

    given = {name: getattr(args, name) for name in _MODEL_OPTIONS}
    given.update(flexgen_options(args))
    if given["max_num_seqs"] is None:
        given["max_num_seqs"] = max_num_seqs
    if in_full_precision:
        given.update(quantization="none", allow=(), kv_cache_dtype="auto")
    return LLM(
        args.model,
        expected_rows=expected_rows,
        typical_row_tokens=typical_row_tokens,
        enable_prefix_caching=enable_prefix_caching,
        **given,
    )


def describe_sampling(sampling: ResolvedSampling, *, max_tokens: str) -> str:
    """Returns one line with everything that sampling was resolved to and that is not off."""
    if sampling.is_greedy:
        parts = ["temperature 0 (greedy)"]
    else:
        parts = [f"temperature {sampling.temperature:g}"]
        parts += [f"top_k {sampling.top_k}"] if sampling.top_k else []
        parts += [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1 else []
        parts += [f"min_p {sampling.min_p:g}"] if sampling.min_p else []
        parts += [f"typical_p {sampling.typical_p:g}"] if sampling.typical_p < 1 else []
    penalties = ("repetition", 1.0), ("presence", 0.0), ("frequency", 0.0)
    for name, neutral in penalties:
        value = getattr(sampling, f"{name}_penalty")
        parts += [f"{name}_penalty {value:g}"] if value != neutral else []
    parts.append(f"max_tokens {max_tokens}")
    parts += [f"min_tokens {sampling.min_tokens}"] if sampling.min_tokens else []
    parts += [f"stop {' '.join(map(repr, sampling.stop))}"] if sampling.stop else []
    parts += [f"answers of one form ({sampling.structured_outputs.kind})"] if sampling.structured_outputs else []
    return f"sampling: {', '.join(parts)}"


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> int:
    try:
        return parse_rate(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
