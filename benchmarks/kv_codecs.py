"""Tokens per second and memory with keys and values as they are, and in codes of 8 and 4 bits.

    python -m benchmarks.kv_codecs                                       # 64 rows of 1,024 tokens, Llama-3.2-1B's shape
    python -m benchmarks.kv_codecs --case tiny --rows 4 --prompt-tokens 64 --new-tokens 8 --rounds 1

The three take turns, each in a process whose peak memory is its own. A row's last `--new-tokens` tokens are generated;
only these are timed, the prompts being in the cache. `growth_bytes` is what resident memory grew by while the prompts
were computed: their keys and values, and what a sweep takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

from benchmarks.beyond_cases import CASES
from benchmarks.dummy_model import make_model
from benchmarks.machine import provenance
from benchmarks.processes import Figures, measure_in_process
from benchmarks.reporting import give, say
from headrace.engine.options import KVCacheDtype, Quantization

SYSTEMS: tuple[str, ...] = get_args(KVCacheDtype)
_SETTINGS = ("rows", "prompt_tokens", "new_tokens", "passes", "dtype", "quantization")
_FIGURES = (
    "generated_tokens_per_second",
    "prompt_tokens_per_second",
    "kv_bytes_per_token",
    "growth_bytes",
    "peak_bytes",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="1b", help="whose shape the model has (default: 1b)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--quantization", default="none", choices=get_args(Quantization))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=992)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--passes", type=int, default=3, help="timed answers in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--work", type=Path, help="keep the model in this folder")
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    sizes = {name: getattr(arguments, name) for name in _SETTINGS}
    measured: dict[str, list[Figures]] = {system: [] for system in SYSTEMS}
    with nullcontext(arguments.work) if arguments.work else tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / arguments.case
        weight_bytes = make_model(model, case.shape, arguments.dtype)
        for _ in range(arguments.rounds):
            for system in SYSTEMS:
                request = {**sizes, "model": str(model), "kv_cache_dtype": system}
                figures = measure_in_process("benchmarks.systems.headrace_kv", request)
                say(f"{system}: {json.dumps(figures)}")
                measured[system].append(figures)
    result = {**provenance(), **sizes, "case": arguments.case, "weight_bytes": weight_bytes}
    result["systems"] = {system: _summary(runs) for system, runs in measured.items()}
    give(result, arguments.output)
    return 1 if any("failed" in run for runs in measured.values() for run in runs) else 0


def _summary(runs: list[Figures]) -> Figures:
    """Medians of what every run measured, over all passes of all runs."""
    failed = [run for run in runs if "failed" in run]
    if failed:
        return failed[0]
    medians = {name: round(statistics.median(_numbers(runs, name)), 2) for name in _FIGURES}
    return {"description": runs[0]["description"], **medians, "preemptions": max(run["preemptions"] for run in runs)}


def _numbers(runs: list[Figures], name: str) -> list[float]:
    values = [run[name] for run in runs]
    return [number for value in values for number in (value if isinstance(value, list) else [value])]


if __name__ == "__main__":
    sys.exit(main())
