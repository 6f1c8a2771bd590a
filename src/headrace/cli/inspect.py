"""`headrace inspect`: what a model is and would cost on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from headrace.cli.options import add_common_options
from headrace.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from headrace.planner.inspection import ModelReport

SUMMARY = "show what a model is and would cost"
DESCRIPTION = """
Reads the configuration and headers of MODEL, no weights, and measures this machine for about a second. Ideal times are
lower bounds: operations at the measured rate of matrix products, and weights at the measured rate of memory.
"""
EPILOG = """
headrace inspect ./folder
headrace inspect demo --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a folder, a Hugging Face name, or demo")
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face model")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="type to run in (default: auto, the checkpoint's own)",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        default="auto",
        choices=("auto", "int8", "int4"),
        help="what keys and values are kept in (default: auto, the type that the model runs in)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto, CUDA where there is one)")
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON; sizes in bytes, times in seconds"
    )
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the report and returns the exit status: 0, also for a model that cannot be run."""
    from headrace.compression.kv_codec import KV_CODECS
    from headrace.models.choices import choose_device, choose_dtype
    from headrace.models.locate import locate_model
    from headrace.planner.inspection import inspect_model

    report = inspect_model(
        args.model,
        locate_model(args.model, args.revision),
        dtype=choose_dtype(args.dtype),
        device=choose_device(args.device),
        codec=KV_CODECS.get(args.kv_cache_dtype),
    )
    print(json.dumps(dataclasses.asdict(report), indent=2) if args.json else "\n".join(_lines(report)))
    return 0


def _lines(report: ModelReport) -> list[str]:
    """Returns the report as aligned lines."""
    rows = [("model", report.model), ("architecture", report.architecture), ("supported", _supported(report))]
    rows += [("parameters", _parameters(report)), ("weights", _weights(report))]
    rows += [("layers", _layers(report)), ("embedding, head", _ends(report))]
    if report.context_tokens is not None:
        rows.append(("context", f"{report.context_tokens:,} tokens"))
    if report.kv_bytes_per_token is not None:
        rows.append(("KV cache", _kv(report)))
    rows.append(("tokenizer", _tokenizer(report)))
    hardware = report.hardware
    rates = f"{hardware.matrix_rate / 1e9:,.0f} GFLOP/s in {report.dtype}, {hardware.memory_rate / 1e9:.1f} GB/s"
    rows.append(("this machine", f"{hardware.device}: {rates}, {format_bytes(hardware.memory_bytes)} free"))
    if report.prefill_seconds is not None and report.decode_seconds is not None:
        rows.append(("ideal prefill", f"{format_seconds(report.prefill_seconds)} for 512 tokens"))
        rows.append(("ideal decode", f"{format_seconds(report.decode_seconds)} per token of one row"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _supported(report: ModelReport) -> str:
    return "yes, token for token as transformers" if report.unsupported is None else f"no: {report.unsupported}"


def _parameters(report: ModelReport) -> str:
    active = report.num_active_parameters
    per_token = "" if active == report.num_parameters else f", {_count(active)} used per token"
    return f"{_count(report.num_parameters)}{per_token}"


def _count(number: int) -> str:
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return str(number)


def _weights(report: ModelReport) -> str:
    source = "configuration only" if report.weights == "none" else report.weights
    return f"{format_bytes(report.weight_bytes)} in {report.dtype} ({source})"


def _layers(report: ModelReport) -> str:
    groups = [f"{layer.count} x {format_bytes(layer.num_bytes)}" for layer in report.layers]
    return f"{report.num_layers}: {', '.join(groups[:6])}{', ...' if len(groups) > 6 else ''}"


def _ends(report: ModelReport) -> str:
    head = format_bytes(report.head_bytes) if report.head_bytes else "shared"
    return f"{format_bytes(report.embedding_bytes)}, {head}"


def _kv(report: ModelReport) -> str:
    per_token, further = report.kv_bytes_per_token or 0, report.kv_bytes_per_further_token or 0
    windows = "" if per_token == further else f", {format_bytes(further)} beyond its windows"
    state = f", state {format_bytes(report.state_bytes_per_row)} per row" if report.state_bytes_per_row else ""
    kept_in = f" in {report.kv_cache_dtype}" if per_token else ""
    return f"{format_bytes(per_token)} per token{kept_in}{windows}{state}"


def _tokenizer(report: ModelReport) -> str:
    if not report.has_tokenizer:
        return "none"
    return "with chat template" if report.has_chat_template else "without chat template: `prompt` rows, no `messages`"
