"""FlexGen's options for where things live and how a sweep is cut, and what they become here.

--compress-weight                   --quantization int4: groups of 64, as FlexGen's
--percent                           shares of weights and KV, in exact bytes of whole layers that are spread evenly,
                                    and of micro-batches whose activations stay on the device while they wait
--offload-dir                       --disk
--gpu-batch-size, --num-gpu-batches rows of a micro-batch, and micro-batches of a sweep
--overlap false                     the plain serial schedule, which reads all weights for every micro-batch
--pin-weight                        whether host memory is pinned; without a GPU there is nothing to pin
--cpu-cache-compute                 the CPU attends over KV that lies on a GPU's host; without a GPU it does anyway
--compress-cache                    --kv-cache-dtype int4, FlexGen's own form of it: groups of 64 along a head
"""

from __future__ import annotations

import argparse
from typing import TypedDict

from headrace.cli.parsing import whole_number
from headrace.errors import OptionError

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


class FlexGenOptions(TypedDict, total=False):
    """What FlexGen's options become as arguments of `LLM`."""

    quantization: str
    weights_on_device: float
    weights_on_host: float
    kv_on_device: float
    kv_on_host: float
    activations_on_device: float
    attend_on_host: bool
    disk: str
    kv_cache_dtype: str
    max_num_seqs: int
    num_micro_batches: int
    overlap: bool
    pin_memory: bool


def add_flexgen_options(parser: argparse.ArgumentParser) -> None:
    """Adds FlexGen's spelling."""
    group = parser.add_argument_group("FlexGen's spelling")
    group.add_argument(
        "--percent",
        type=int,
        nargs=6,
        metavar="N",
        help="shares of weights on GPU and CPU, KV on GPU and CPU, activations on GPU and CPU; the rest is on disk",
    )
    group.add_argument("--compress-weight", action="store_true", default=None, help="the same as --quantization int4")
    group.add_argument("--offload-dir", metavar="FOLDER", help="the same as --disk")
    group.add_argument("--gpu-batch-size", type=whole_number(1), metavar="N", help="rows of one micro-batch")
    group.add_argument("--num-gpu-batches", type=whole_number(1), metavar="N", help="micro-batches of one sweep")
    group.add_argument("--overlap", type=_yes_or_no, metavar="BOOL", help="false: the plain serial schedule")
    group.add_argument(
        "--pin-weight",
        type=_yes_or_no,
        metavar="BOOL",
        help="pinned host memory for weights and KV (default: true); without a GPU there is nothing to pin",
    )
    group.add_argument(
        "--cpu-cache-compute", action="store_true", default=None, help="attend on the CPU over KV that is in its memory"
    )
    group.add_argument("--compress-cache", action="store_true", default=None, help="the same as --kv-cache-dtype int4")


def flexgen_options(args: argparse.Namespace) -> FlexGenOptions:
    """Returns what the options that were given become.

    Raises:
        OptionError: a value or a combination cannot be, or is not what this version does.
    """
    found: FlexGenOptions = {}
    if args.percent is not None:
        found.update(_shares(args.percent, are_one=_runs_on_cpu(args.device)))
    if args.compress_weight:
        _refuse_both("--compress-weight", "--quantization", None if args.quantization == "none" else args.quantization)
        found["quantization"] = "int4"
    if args.offload_dir is not None:
        _refuse_both("--offload-dir", "--disk", args.disk)
        found["disk"] = args.offload_dir
    if args.num_gpu_batches is not None:
        found["num_micro_batches"] = args.num_gpu_batches
    if args.gpu_batch_size is not None:
        _refuse_both("--gpu-batch-size", "--max-num-seqs", args.max_num_seqs)
        found["max_num_seqs"] = args.gpu_batch_size * (args.num_gpu_batches or 1)
    if args.overlap is not None:
        found["overlap"] = args.overlap
    if args.pin_weight is not None and not _runs_on_cpu(args.device):
        found["pin_memory"] = args.pin_weight
    if args.compress_cache:
        _refuse_both(
            "--compress-cache", "--kv-cache-dtype", None if args.kv_cache_dtype == "auto" else args.kv_cache_dtype
        )
        found["kv_cache_dtype"] = "int4"
    if args.cpu_cache_compute and not _runs_on_cpu(args.device):
        found["attend_on_host"] = True
    return found


def _shares(percent: list[int], *, are_one: bool) -> FlexGenOptions:
    """Shares of what is on the device and on its host; where these are one, what is on either is in memory."""
    pairs = [percent[0:2], percent[2:4], percent[4:6]]
    for what, pair in zip(("weights", "KV", "activations"), pairs, strict=True):
        if min(pair) < 0 or sum(pair) > 100:
            raise OptionError(
                f"--percent: {what} are {pair[0]} % on GPU and {pair[1]} % on CPU; expected 100 % at most"
            )
    (weights, weights_on_host), (kv, kv_on_host), activations = pairs
    if sum(activations) < 100:
        raise OptionError(
            f"--percent: {100 - sum(activations)} % of activations on disk; Headrace keeps them in memory, and "
            "makes sweeps as small as that needs; give 100 % on GPU and CPU together"
        )
    if are_one:
        return {"weights_on_device": (weights + weights_on_host) / 100, "kv_on_device": (kv + kv_on_host) / 100}
    return {
        "weights_on_device": weights / 100,
        "weights_on_host": weights_on_host / 100,
        "kv_on_device": kv / 100,
        "kv_on_host": kv_on_host / 100,
        "activations_on_device": activations[0] / 100,
    }


def _runs_on_cpu(device: str) -> bool:
    from headrace.models.choices import choose_device
    from headrace.storage.simulated_device import parse_simulated

    return parse_simulated(device) is None and choose_device(device).type == "cpu"


def _refuse_both(theirs: str, ours: str, value: object) -> None:
    if value is not None:
        raise OptionError(f"{theirs} and {ours} say the same; give one of them")


def _yes_or_no(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"{text!r}; expected true or false")
