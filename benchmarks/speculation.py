"""What guessing tokens from a row's own text brings where sweeps wait for weights: the demo's job, streamed.

    python -m benchmarks.speculation
    python -m benchmarks.speculation --rows 1 8 64 --disk-bandwidth 40MB/s

The demo model is trained, so that its answers repeat what its prompts say. It has 1.8 MB, whose reading is throttled
here, so that a sweep waits for them as one of a large model does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import provenance
from benchmarks.processes import ROOT
from benchmarks.reporting import give, say
from headrace import LLM, SamplingParams

WAYS = {"with guesses": True, "without": False}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--disk-bandwidth", default="40MB/s", help="limits the disk, as headrace takes it")
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    args = parser.parse_args()
    result: dict[str, Any] = {**provenance(), "disk_bandwidth": args.disk_bandwidth, "jobs": {}}
    for rows in args.rows:
        result["jobs"][f"{rows} rows"] = _alternately(rows, args.disk_bandwidth, args.repeats)
    give(result, args.output)
    return 0


def _alternately(num_rows: int, disk_bandwidth: str, repeats: int) -> dict[str, Any]:
    """Returns the median of generated tokens per second, for each way; the answers are the same."""
    lines = (ROOT / "examples" / "orders.jsonl").read_text().splitlines()[:num_rows]
    conversations = [json.loads(line)["messages"] for line in lines]
    measured: dict[str, list[float]] = {way: [] for way in WAYS}
    answers: list[list[str]] = []
    for _ in range(repeats):
        for way, speculate in WAYS.items():
            with LLM(
                "demo",
                weights_on_device=0.0,
                disk_bandwidth=disk_bandwidth,
                expected_rows=num_rows,
                speculate=speculate,
            ) as llm:
                prompts = [llm.tokenizer.encode_chat(conversation) for conversation in conversations]
                start = time.perf_counter()
                outputs = llm.generate(prompts, SamplingParams(max_tokens=200, temperature=0))
                seconds = time.perf_counter() - start
            num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
            measured[way].append(num_tokens / seconds)
            answers.append([output.outputs[0].text for output in outputs])
            say(f"{num_rows} rows, {way}: {num_tokens / seconds:.1f} tokens/s")
    assert all(texts == answers[0] for texts in answers), "a guess changed an answer"
    medians = {way: statistics.median(rates) for way, rates in measured.items()}
    return {
        "tokens_per_second": {way: round(rate, 1) for way, rate in medians.items()},
        "ratio": round(medians["with guesses"] / medians["without"], 3),
    }


if __name__ == "__main__":
    sys.exit(main())
