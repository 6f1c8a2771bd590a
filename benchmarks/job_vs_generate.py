"""A job of 500 rows of mixed lengths: Headrace against transformers' `generate`, alternately in one run.

    python -m benchmarks.job_vs_generate

Random weights of a 0.3B shape (tokens depend on no weights' meaning, times do not either), real text, Qwen2's
tokenizer. Written to take further systems (`SYSTEMS`) and workloads beside these.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from benchmarks.machine import provenance
from benchmarks.reporting import give, say
from benchmarks.systems.base import System
from benchmarks.systems.headrace_job import HeadraceJob
from benchmarks.systems.transformers_generate import TransformersGenerate
from benchmarks.workloads import Workload, mixed_text

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SYSTEMS: dict[str, Callable[[Path, str], System]] = {"headrace": HeadraceJob, "transformers": TransformersGenerate}
_TUNING_ROWS = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--data", type=Path, default=SHARED_DATA, help="folder with text/ and tokenizers/qwen2")
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.data / "tokenizers" / "qwen2")
    workload = mixed_text(args.data, lambda text: tokenizer.encode(text, verbose=False), num_rows=args.rows)
    with tempfile.TemporaryDirectory() as folder:
        num_parameters = _make_model(Path(folder), args.dtype)
        tokenizer.save_pretrained(folder)
        systems = {name: SYSTEMS[name](Path(folder), args.dtype) for name in args.systems}
        result = _measure(systems, workload, args.repeats)
    result = {**provenance(), "dtype": args.dtype, "num_parameters": num_parameters, **result}
    give(result, args.output)
    return 0


def _make_model(folder: Path, dtype: str) -> int:
    """Saves a random Qwen2-shaped model and returns its number of parameters."""
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=12,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    return model.num_parameters()


def _measure(systems: dict[str, System], workload: Workload, repeats: int) -> dict[str, object]:
    """Tunes each system on a sample, then lets them answer the whole workload in turn."""
    for name, system in systems.items():
        say(f"tuning {name}")
        system.tune(workload.sample(_TUNING_ROWS))
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    answers: dict[str, list[list[int]]] = {}
    for repeat in range(repeats):
        for name, system in systems.items():
            start = time.perf_counter()
            answers[name] = system.run(workload)
            seconds[name].append(time.perf_counter() - start)
            say(f"run {repeat + 1} of {repeats}: {system.name}: {seconds[name][-1]:.1f} s")
    first, *others = answers.values()
    rates = {name: workload.num_output_tokens / statistics.median(times) for name, times in seconds.items()}
    return {
        "workload": workload.name,
        "num_rows": len(workload.rows),
        "prompt_tokens": workload.num_prompt_tokens,
        "generated_tokens": workload.num_output_tokens,
        "systems": {
            name: {"settings": systems[name].name, "seconds": times, "generated_tokens_per_second": rates[name]}
            for name, times in seconds.items()
        },
        "identical_rows": [sum(map(list.__eq__, first, other)) for other in others],
        "ratios_to_first": {name: rates[next(iter(rates))] / rate for name, rate in rates.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
