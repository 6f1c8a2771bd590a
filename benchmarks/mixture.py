"""A mixture of experts larger than its memory: experts as tokens are routed to them, against all of them in order.

    python -m benchmarks.mixture
    python -m benchmarks.mixture --disk-bandwidth 1GB/s     # where the disk's own rate wanders

Random weights: 8 layers of 32 experts, of which a token goes to 2, 1.0 GiB in float32, under 600 MiB above Python.
One row reads few experts; 64 rows read nearly all, and should be as fast whichever way it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import provenance
from benchmarks.reporting import give, say
from headrace import LLM, SamplingParams
from headrace.executor import expert_stream
from headrace.storage.process_memory import resident_bytes
from headrace.units import MIB

CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 512,
    "intermediate_size": 680,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
    "vocab_size": 8000,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
}
WAYS = {"as the sweep needs": expert_stream.MOST_ON_DEMAND, "all in order": 0.0}
PROMPT_TOKENS, NEW_TOKENS = 16, 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--disk-bandwidth", help="limits the disk, as headrace takes it")
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-mixture-") as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIG))
        with LLM(
            folder,
            load_format="dummy",
            device="cpu",
            memory=resident_bytes() + 600 * MIB,
            disk=folder,
            disk_bandwidth=args.disk_bandwidth,
            weights_on_device=0.0,
            max_model_len=256,
        ) as llm:
            result = {**provenance(), "model": llm.description, "disk_bandwidth": args.disk_bandwidth}
            result["tokens_per_second"] = {f"{rows} rows": _alternately(llm, rows, args.repeats) for rows in args.rows}
    give(result, args.output)
    return 0


def _alternately(llm: LLM, num_rows: int, repeats: int) -> dict[str, float]:
    """Returns the median of generated tokens per second, for each way."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        for way, share in WAYS.items():
            expert_stream.MOST_ON_DEMAND = share
            rate = _measure(llm, num_rows, seed=repeat)
            if repeat:  # the first warms up
                rates[way].append(rate)
            say(f"{num_rows} rows, {way}: {rate:.2f} tokens/s")
    return {way: round(statistics.median(measured), 3) for way, measured in rates.items()}


def _measure(llm: LLM, num_rows: int, seed: int) -> float:
    prompts = [[(31 * seed + 17 * row + 7 * place) % 8000 for place in range(PROMPT_TOKENS)] for row in range(num_rows)]
    start = time.perf_counter()
    llm.generate(prompts, SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True))
    return num_rows * NEW_TOKENS / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
