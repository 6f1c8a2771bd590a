"""Products of tokens with one layer's weights on a CPU: Headrace's library against torch, and against two limits.

    python -m benchmarks.linear
    python -m benchmarks.linear --tokens 1 8 512 --repeats 9

Weights of the shapes of a Llama 1B, as many copies of each as caches do not hold. `torch` is `linear` in bf16,
`widened` Headrace's path without the library (weights widened to fp32 block by block), `library` its own over
weights as they lie in a checkpoint, `interleaved` over those of a model in memory, int8 and int4 over packed ones.
The limits are the time in which torch reads the bytes of the bf16 weights, and that in which it multiplies as many
numbers in one large product, in fp32 or bf16, whichever takes less; of the two the longer. int8 and int4 may beat
both. All take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import provenance
from benchmarks.reporting import keep
from headrace.compression.packed_linear import product_with
from headrace.compression.weight_codecs import Int4Codec, Int8Codec
from headrace.kernels.interleaving import interleave
from headrace.kernels.library import instruction_set, library
from headrace.kernels.linear import linear
from headrace.models.products import WideProducts

SHAPES = [(2048, 2048), (16384, 2048), (2048, 8192)]
_COPIES_BYTES = 384 * 1024**2
_MANY_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    arguments = parser.parse_args()
    result = {**provenance(), "instruction_set": instruction_set(), "gflops_by_outputs_x_inputs_and_tokens": {}}
    with torch.inference_mode():
        for shape in SHAPES:
            rates = _measure(shape, arguments.tokens, arguments.repeats)
            result["gflops_by_outputs_x_inputs_and_tokens"]["{}x{}".format(*shape)] = rates
            print(shape, json.dumps(rates), flush=True)
    keep(result, arguments.output)


def _measure(shape: tuple[int, int], token_counts: Sequence[int], repeats: int) -> dict[int, dict[str, float]]:
    num_copies = max(1, _COPIES_BYTES // (2 * shape[0] * shape[1]))
    plain = [torch.randn(shape).to(torch.bfloat16) for _ in range(num_copies)]
    packed = {codec.name: [product_with(weight, codec) for weight in plain] for codec in (Int8Codec(), Int4Codec())}
    interleaved = [interleave(weight.clone()) for weight in plain]
    widened, found = WideProducts(), library()
    rates: dict[int, dict[str, float]] = {}
    for num_tokens in token_counts:
        tokens = torch.randn(num_tokens, shape[1]).to(torch.bfloat16)
        ways: dict[str, list[Callable[[Tensor], Tensor]]] = {
            "torch": [product_with(weight, None) for weight in plain],
            "widened": [lambda tokens, weight=weight: widened.linear(tokens, weight) for weight in plain],
            **packed,
        }
        if found is not None:
            ways["library"] = [
                lambda tokens, weight=weight: linear(found, tokens, [(weight, None)]) for weight in plain
            ]
            ways["interleaved"] = [
                lambda tokens, weight=weight: linear(found, tokens, [(weight, None)], are_interleaved=True)
                for weight in interleaved
            ]
        if num_tokens >= _MANY_TOKENS:
            ways = {name: products[:1] for name, products in ways.items()}
        rates[num_tokens] = _rates(ways, tokens, shape, repeats)
    return rates


def _rates(
    ways: dict[str, list[Callable[[Tensor], Tensor]]], tokens: Tensor, shape: tuple[int, int], repeats: int
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "reading", "multiplying")}
    large = torch.randn(512, shape[1]), torch.randn(2048, shape[1])
    for round_ in range(repeats + 1):
        for name, products in ways.items():
            begin = time.perf_counter()
            for multiply in products:
                multiply(tokens)
            elapsed = (time.perf_counter() - begin) / len(products)
            seconds[name] += [elapsed] if round_ else []  # the first brings in code and pages
        seconds["reading"] += [_seconds_to_read(2 * shape[0] * shape[1])] if round_ else []
        a_large_one = min(_seconds_to_multiply(*(numbers.to(dtype) for numbers in large)) for dtype in _DTYPES)
        seconds["multiplying"] += [a_large_one * len(tokens) * shape[0] / (512 * 2048)] if round_ else []
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    limit = max(medians.pop("reading"), medians.pop("multiplying"))
    work = 2 * len(tokens) * shape[0] * shape[1]
    return {name: round(work / elapsed / 1e9, 1) for name, elapsed in {**medians, "limit_bf16": limit}.items()}


def _seconds_to_multiply(tokens: Tensor, weight: Tensor) -> float:
    begin = time.perf_counter()
    torch.nn.functional.linear(tokens, weight)
    return time.perf_counter() - begin


_DTYPES = (torch.float32, torch.bfloat16)
_READ = torch.ones(_COPIES_BYTES // 8, dtype=torch.int64)


def _seconds_to_read(num_bytes: int) -> float:
    begin = time.perf_counter()
    _READ.sum()
    return (time.perf_counter() - begin) * num_bytes / _READ.nbytes


if __name__ == "__main__":
    main()
