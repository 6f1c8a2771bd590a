"""`headrace quantize`: packs a model's weights once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headrace.cli.options import add_common_options
from headrace.errors import OptionError
from headrace.units import format_bytes

SUMMARY = "write a model with weights in 8 or 4 bits"
DESCRIPTION = """
Packs the linear layers of MODEL and writes a checkpoint in the compressed-tensors format, which Headrace, vLLM and
transformers read. Embedding, output head and merged experts stay as they are. `--quantization` of other commands does
the same while a model is loaded; packing once saves that time, and the disk that copies for streaming take.
"""
EPILOG = """
headrace quantize ./llama-7b -o ./llama-7b-int4 --quantization int4 --group-size 64
headrace quantize org/name -o ./name-int8 --quantization int8
"""
_GROUP_SIZES = (32, 64, 128, 256)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a folder or a Hugging Face name, or demo")
    parser.add_argument("--output", "-o", metavar="FOLDER", required=True, help="a folder that is not there yet")
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face model")
    parser.add_argument(
        "--quantization",
        choices=("int8", "int4"),
        required=True,
        help="int8: one scale per output, tokens in 8 bits, too; int4: a scale and a zero for each group of inputs",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=_GROUP_SIZES,
        metavar="N",
        help=f"int4: inputs in a group, {', '.join(map(str, _GROUP_SIZES))} (default: 64)",
    )
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the checkpoint and returns the exit status."""
    from headrace.compression.weight_codecs import DEFAULT_GROUP_SIZE, Int4Codec, Int8Codec
    from headrace.models.locate import locate_model
    from headrace.models.quantized_checkpoint import write_quantized

    if args.quantization == "int8" and args.group_size is not None:
        raise OptionError("--group-size is for int4; int8 has one scale per output")
    codec = Int8Codec() if args.quantization == "int8" else Int4Codec(args.group_size or DEFAULT_GROUP_SIZE)
    target = Path(args.output)
    written = write_quantized(
        locate_model(args.model, args.revision),
        target,
        codec,
        note=lambda line: None if args.quiet else print(line, file=sys.stderr),
    )
    print(
        f"{target}: {written.num_layers} linear layers in {codec.name}; "
        f"{format_bytes(written.written_bytes)}, before {format_bytes(written.read_bytes)}"
    )
    return 0
