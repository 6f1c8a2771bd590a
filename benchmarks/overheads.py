"""What a decoding sweep takes beside its products: Python, sampling, scheduling and detokenization.

    python -m benchmarks.overheads                          # 16 rows, Llama-3.2-1B's shape, bfloat16
    python -m benchmarks.overheads --quantization int8

What the C++ library and torch's linear layers do counts as products; all else of a model's forward counts as Python.
All times are medians over sweeps in which every row gets one token.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from benchmarks.beyond_cases import CASES
from benchmarks.dummy_model import make_model
from benchmarks.machine import provenance
from benchmarks.reporting import give
from headrace import LLM, SamplingParams
from headrace.engine.options import Quantization
from headrace.executor.executor import Executor, Sampled, Sampler
from headrace.kernels import library as kernels
from headrace.kernels.build import library_file
from headrace.scheduler.sweep import Chunk, Sweep

SHAPE = CASES["1b"].shape


class Stopwatch:
    """Attributes:
    seconds: what functions took that it timed.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., object]) -> Callable[..., object]:
        """Returns a function that does the same."""

        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return result

        return timed


class TimedLibrary(ctypes.CDLL):
    """The C++ library, whose functions are timed."""

    def __init__(self, file: str, stopwatch: Stopwatch) -> None:
        super().__init__(file)
        plain = self._FuncPtr  # type: ignore[has-type]

        class Timed(plain):  # type: ignore[misc,valid-type]
            _flags_, _restype_ = plain._flags_, plain._restype_

            def __call__(self, *args: object) -> object:
                return stopwatch.timed(super().__call__)(*args)

        self._FuncPtr = Timed


@dataclass
class TimedExecutor:
    """Runs sweeps, and notes of those of one token per row when they began, and what their parts took in seconds."""

    executor: Executor
    num_rows: int
    products: Stopwatch
    forwards: list[float] = field(default_factory=list)
    beside_products: list[float] = field(default_factory=list)
    samplings: list[float] = field(default_factory=list)
    started: list[float] = field(default_factory=list)

    def run(self, sweep: Sweep, sampler: Sampler) -> Sampled:
        sampling = 0.0

        def timed(logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
            nonlocal sampling
            start = time.perf_counter()
            tokens = sampler(logits, chunks)
            sampling = time.perf_counter() - start
            return tokens

        start, products = time.perf_counter(), self.products.seconds
        sampled = self.executor.run(sweep, timed)
        if sweep.num_tokens == self.num_rows == len(sampled):
            forward = time.perf_counter() - start - sampling
            self.started.append(start)
            self.forwards.append(forward)
            self.beside_products.append(forward - (self.products.seconds - products))
            self.samplings.append(sampling)
        return sampled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--quantization", default="none", choices=get_args(Quantization))
    parser.add_argument("--work", type=Path, help="folder for the model, which stays there; else a temporary one")
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headrace-overheads-") as folder:
        sweep, beside = _measure(args.work or Path(folder), args)
    result = {
        **provenance(),
        "shape": asdict(SHAPE),
        "rows": args.rows,
        "dtype": args.dtype,
        "quantization": args.quantization,
        "sweep_seconds": sweep,
        "beside_products_seconds": beside,
        "beside_products_share": sum(beside.values()) / sweep,
    }
    give(result, args.output)
    return 0


def _measure(folder: Path, args: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Returns what a sweep takes in seconds, and what each part takes that is no product."""
    make_model(folder, SHAPE, args.dtype)
    draw = random.Random(0)
    prompts = [[draw.randrange(SHAPE.vocab_size) for _ in range(32)] for _ in range(args.rows)]
    products = Stopwatch()
    torch.nn.functional.linear = products.timed(torch.nn.functional.linear)  # type: ignore[assignment]
    kernels.load = lambda name: TimedLibrary(str(library_file(name)), products)
    with LLM(folder, dtype=args.dtype, quantization=args.quantization) as llm:
        engine = llm._require_engine()  # what sweeps take is nothing that users of LLM are told
        timed = engine.executor = TimedExecutor(engine.executor, args.rows, products)  # type: ignore[assignment]
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=96, ignore_eos=True))
    sweep = statistics.median(later - earlier for earlier, later in pairwise(timed.started))
    sampling = statistics.median(timed.samplings)
    scheduling = sweep - statistics.median(timed.forwards) - sampling
    return sweep, {"python": statistics.median(timed.beside_products), "sampling": sampling, "scheduling": scheduling}


if __name__ == "__main__":
    sys.exit(main())
