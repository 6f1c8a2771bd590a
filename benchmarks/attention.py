"""Attention of one layer on a CPU: Headrace's library against torch, and against the memory that must be read.

    python -m benchmarks.attention
    python -m benchmarks.attention --dtype bfloat16 --repeats 9
    python -m benchmarks.attention --kv-cache-dtype int8

Decoding rows are measured in bytes of keys and values per second, beside a plain read of the same bytes in the order
in which they lie; both over several layers one after another, as in a sweep, so that caches hold nothing of what
comes next. Prompts are measured in operations that the causal mask leaves, beside a matrix product of torch's in
float32. `torch` is Headrace's path without the library; `sdpa` is `scaled_dot_product_attention` over keys and values
that lie in order, without pages, in one batch. All take turns, in another order each time: some machines' memory is
slower the longer it is used. With `--kv-cache-dtype` pages hold codes, and bytes are those of the codes; `sdpa` has
plain numbers all the same. Of rows that share a prefix as many bytes are counted as if each read its own; `apart` is
the library where each does, since every row has copies of the shared blocks.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import provenance
from benchmarks.reporting import keep
from headrace.attention.grouped import GroupedAttention
from headrace.attention.paged import PagedAttention
from headrace.attention.ragged import AttentionBackend, Integers, KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule
from headrace.compression.kv_codec import KV_CODECS, KVCodec
from headrace.compression.kv_codes import encode
from headrace.kernels.library import load, usable
from headrace.storage.zero_pages import zero_pages

BLOCK_TOKENS = 32
COLD_BYTES = 600 * 10**6
"""Twice the third cache of large processors."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """`num_rows` rows of `context` tokens, the first `shared` the same in all; the last `num_queries` are computed."""

    num_heads: int
    num_kv_heads: int
    width: int
    num_rows: int
    context: int
    num_queries: int
    shared: int = 0

    @property
    def name(self) -> str:
        kind = "decode" if self.num_queries == 1 else "prefill"
        shared = f" of which {self.shared} shared" if self.shared else ""
        heads = f"{self.num_heads}/{self.num_kv_heads} heads of {self.width}"
        return f"{kind} {self.num_rows} x {self.context}{shared}, {heads}"

    @property
    def num_operations(self) -> int:
        pairs = self.num_rows * sum(range(self.context - self.num_queries + 1, self.context + 1))
        return 4 * pairs * self.num_heads * self.width


Way = Callable[[], object]

CASES = [
    Case(num_heads=32, num_kv_heads=8, width=64, num_rows=64, context=512, num_queries=1),
    Case(num_heads=32, num_kv_heads=32, width=64, num_rows=64, context=512, num_queries=1),
    Case(num_heads=32, num_kv_heads=8, width=128, num_rows=64, context=512, num_queries=1),
    Case(num_heads=32, num_kv_heads=32, width=128, num_rows=48, context=144, num_queries=1),
    Case(num_heads=32, num_kv_heads=8, width=64, num_rows=1, context=512, num_queries=512),
    Case(num_heads=32, num_kv_heads=32, width=128, num_rows=1, context=512, num_queries=512),
    Case(num_heads=32, num_kv_heads=32, width=128, num_rows=8, context=128, num_queries=128),
    Case(num_heads=32, num_kv_heads=8, width=64, num_rows=64, context=1255, num_queries=1, shared=1191),
    Case(num_heads=32, num_kv_heads=8, width=64, num_rows=8, context=1255, num_queries=1, shared=1191),
    Case(num_heads=32, num_kv_heads=32, width=64, num_rows=32, context=1255, num_queries=1, shared=1191),
    Case(num_heads=32, num_kv_heads=8, width=128, num_rows=64, context=1255, num_queries=1, shared=1191),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--kv-cache-dtype", choices=["auto", *KV_CODECS], default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="also write the result there, as JSON")
    arguments = parser.parse_args()
    kept_in = {"dtype": arguments.dtype, "kv_cache_dtype": arguments.kv_cache_dtype}
    result = {**provenance(), **kept_in, "cases": {}}
    dtype, codec = getattr(torch, arguments.dtype), KV_CODECS.get(arguments.kv_cache_dtype)
    with torch.inference_mode():
        for case in CASES:
            result["cases"][case.name] = _measure(case, dtype, codec, arguments.repeats)
            print(case.name, json.dumps(result["cases"][case.name]), flush=True)
    keep(result, arguments.output)


def _measure(case: Case, dtype: torch.dtype, codec: KVCodec | None, repeats: int) -> dict[str, float]:
    num_blocks = case.num_rows * -(-case.context // BLOCK_TOKENS)
    first = _pages(case, num_blocks, dtype, codec)
    assert first.values is not None
    page_bytes = first.keys.nbytes + first.values.nbytes
    kv_bytes = case.num_rows * case.context * page_bytes // (num_blocks * BLOCK_TOKENS)
    num_layers = -(-COLD_BYTES // kv_bytes) if case.num_queries == 1 else 1
    layers = [first, *(_pages(case, num_blocks, dtype, codec) for _ in range(num_layers - 1))]
    table = np.random.default_rng(0).permutation(num_blocks).reshape(case.num_rows, -1)
    apart, layout = _layout(case, table), _layout(case, _with_shared_blocks(case, table))
    query = torch.randn(case.num_rows * case.num_queries, case.num_heads, case.width).to(dtype)
    rule = AttentionRule(scale=case.width**-0.5)

    def over_layers(attention: AttentionBackend, layout: RaggedLayout) -> Way:
        return lambda: [attention.attend(query, pages, layout, rule) for pages in layers]

    ways: dict[str, Way] = {name: over_layers(PagedAttention(load(name)), layout) for name in usable()}
    if case.shared and usable():
        ways["apart"] = over_layers(PagedAttention(load(usable()[0])), apart)
    ways["torch"] = over_layers(GroupedAttention(), layout)
    ways["sdpa"] = _sdpa(case, dtype, num_layers)
    ways["limit"] = _read(layers) if case.num_queries == 1 else _multiply(case)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(repeats + 1):
        for name, way in random.Random(round_).sample(list(ways.items()), len(ways)):
            begin = time.perf_counter()
            way()
            if round_:  # the first brings in code and pages
                seconds[name].append((time.perf_counter() - begin) / num_layers)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    work = dict.fromkeys(ways, kv_bytes if case.num_queries == 1 else case.num_operations)
    if case.num_queries == 1:
        work["limit"] = page_bytes
        work["sdpa"] = 2 * case.num_rows * case.context * case.num_kv_heads * case.width * dtype.itemsize
    rates = {name: work[name] / median / 1e9 for name, median in medians.items()}
    unit = "GB/s" if case.num_queries == 1 else "GFLOP/s"
    return {
        **{f"{name}, {unit}": round(rate, 2) for name, rate in rates.items()},
        **{f"{name}, ms": round(1e3 * median, 3) for name, median in medians.items()},
        **({"share_of_limit": round(rates[usable()[0]] / rates["limit"], 3)} if usable() else {}),
    }


def _layout(case: Case, table: Integers) -> RaggedLayout:
    return RaggedLayout.build(
        block_tokens=BLOCK_TOKENS,
        starts=np.full(case.num_rows, case.context - case.num_queries),
        lengths=np.full(case.num_rows, case.num_queries),
        block_table=table,
        device=torch.device("cpu"),
    )


def _with_shared_blocks(case: Case, table: Integers) -> Integers:
    """As the cache makes it: whole blocks are shared, of the next one each row has a copy."""
    num_shared = case.shared // BLOCK_TOKENS
    return np.concatenate((np.repeat(table[:1, :num_shared], case.num_rows, axis=0), table[:, num_shared:]), axis=1)


def _pages(case: Case, num_blocks: int, dtype: torch.dtype, codec: KVCodec | None) -> KVPages:
    places = (num_blocks, case.num_kv_heads, BLOCK_TOKENS, case.width)
    keys, values = (_filled(torch.randn(places).to(dtype), codec) for _ in range(2))
    return KVPages(keys=keys, values=values, value_width=case.width, codec=codec)


def _filled(numbers: Tensor, codec: KVCodec | None) -> Tensor:
    """In memory as the KV cache has it."""
    numbers = numbers if codec is None else encode(numbers, codec)
    return zero_pages(tuple(numbers.shape), numbers.dtype, CPU).copy_(numbers)


def _sdpa(case: Case, dtype: torch.dtype, num_layers: int) -> Way:
    query = torch.randn(case.num_rows, case.num_heads, case.num_queries, case.width).to(dtype)
    shape = (num_layers, case.num_rows, case.num_kv_heads, case.context, case.width)
    keys, values = (torch.randn(shape).to(dtype) for _ in range(2))
    return lambda: [
        torch.nn.functional.scaled_dot_product_attention(
            query, *of_layer, is_causal=case.num_queries > 1, enable_gqa=case.num_heads != case.num_kv_heads
        )
        for of_layer in zip(keys, values, strict=True)
    ]


def _read(layers: list[KVPages]) -> Way:
    parts = [part for pages in layers for part in (pages.keys, pages.values) if part is not None]
    plain = [part.view(torch.uint8).view(-1).view(torch.int64) for part in parts]
    return lambda: [part.sum() for part in plain]


def _multiply(case: Case) -> Way:
    """As many operations as attention has, in one product."""
    width = round((case.num_operations / 2) ** (1 / 3))
    left, right = torch.randn(width, width), torch.randn(width, width)
    return lambda: left @ right


if __name__ == "__main__":
    main()
