"""What a decoding sweep takes beside its products: Python of the modules, sampling, scheduling and detokenization.

    python -m benchmarks.overheads                          # 16 rows, Llama-3.2-1B's shape, bfloat16
    python -m benchmarks.overheads --quantization int8

What the modules take in Python is measured on a model of as many layers that is so narrow that it hardly multiplies.
All times are medians over sweeps in which every row gets one token.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

from torch import Tensor

from benchmarks.beyond_cases import CASES
from benchmarks.dummy_model import make_model
from benchmarks.llama_shape import LlamaShape
from benchmarks.machine import provenance
from benchmarks.reporting import give
from headrace import LLM, SamplingParams
from headrace.engine.options import Quantization
from headrace.executor.executor import Executor, Sampled, Sampler
from headrace.scheduler.sweep import Chunk, Sweep

SHAPE = CASES["1b"].shape
NARROW = replace(
    SHAPE,
    vocab_size=512,
    hidden_size=64,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
)


@dataclass
class TimedExecutor:
    """Runs sweeps, and notes of those of one token per row when they began, and what forwards and sampling took."""

    executor: Executor
    num_rows: int
    forward_seconds: list[float] = field(default_factory=list)
    sampling_seconds: list[float] = field(default_factory=list)
    started: list[float] = field(default_factory=list)

    def run(self, sweep: Sweep, sampler: Sampler) -> Sampled:
        sampling = 0.0

        def timed(logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
            nonlocal sampling
            start = time.perf_counter()
            tokens = sampler(logits, chunks)
            sampling = time.perf_counter() - start
            return tokens

        start = time.perf_counter()
        sampled = self.executor.run(sweep, timed)
        if sweep.num_tokens == self.num_rows == len(sampled):
            self.started.append(start)
            self.forward_seconds.append(time.perf_counter() - start - sampling)
            self.sampling_seconds.append(sampling)
        return sampled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--quantization", default="none", choices=get_args(Quantization))
    parser.add_argument("--work", type=Path, help="folder for the models, which stay there; else a temporary one")
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-overheads-") as folder:
        work = args.work or Path(folder)
        narrow = _measure(work / "narrow", NARROW, args)["forward"]
        sweep = _measure(work / "1b", SHAPE, args)
    beside = {"modules": narrow, "sampling": sweep["sampling"], "scheduling": sweep["scheduling"]}
    result = {
        **provenance(),
        "shape": asdict(SHAPE),
        "rows": args.rows,
        "dtype": args.dtype,
        "quantization": args.quantization,
        "sweep_seconds": sweep["whole"],
        "beside_products_seconds": beside,
        "beside_products_shares": {name: seconds / sweep["whole"] for name, seconds in beside.items()},
    }
    give(result, args.output)
    return 0


def _measure(folder: Path, shape: LlamaShape, args: argparse.Namespace) -> dict[str, float]:
    """Returns what a sweep takes in seconds: its forwards, sampling, and what lies between it and the next one."""
    make_model(folder, shape, args.dtype)
    draw = random.Random(0)
    prompts = [[draw.randrange(shape.vocab_size) for _ in range(32)] for _ in range(args.rows)]
    with LLM(folder, dtype=args.dtype, quantization=args.quantization) as llm:
        engine = llm._require_engine()  # what sweeps take is nothing that users of LLM are told
        timed = engine.executor = TimedExecutor(engine.executor, args.rows)  # type: ignore[assignment]
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=96, ignore_eos=True))
    wholes = [later - earlier for earlier, later in pairwise(timed.started)]
    forward, sampling = statistics.median(timed.forward_seconds), statistics.median(timed.sampling_seconds)
    whole = statistics.median(wholes)
    return {"whole": whole, "forward": forward, "sampling": sampling, "scheduling": whole - forward - sampling}


if __name__ == "__main__":
    sys.exit(main())
