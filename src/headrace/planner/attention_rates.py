"""How fast the engine's attention runs, for decoding rows and for a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from headrace.attention.paged import best_attention
from headrace.attention.ragged import Integers, KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule
from headrace.compression.kv_codec import KVCodec
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.pools import make_pages
from headrace.planner.calibration_record import AttentionRate
from headrace.planner.timing import best_seconds
from headrace.storage.zero_pages import zero_pages
from headrace.units import MIB

_BLOCK_TOKENS = 32
_DECODE_CONTEXT, _PREFILL_TOKENS = 1024, 512
_MOST_ROWS = 32
_ENOUGH_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """One layer's heads. `latent`: values are the first numbers of the keys (see `AttentionSpec`)."""

    num_heads: int
    num_kv_heads: int
    key_width: int
    value_width: int
    latent: bool = False

    def pages(self, codec: KVCodec | None) -> PageShape:
        """Returns what is kept of a token."""
        return PageShape(
            num_kv_heads=self.num_kv_heads,
            key_width=self.key_width,
            value_width=self.value_width,
            latent=self.latent,
            codec=codec,
        )


STANDARD_ATTENTION = AttentionShape(num_heads=32, num_kv_heads=8, key_width=128, value_width=128)
"""That of an 8B Llama."""


def measure_attention(
    device: torch.device,
    dtype: torch.dtype,
    shape: AttentionShape,
    *,
    codec: KVCodec | None = None,
    kv_bytes: int = 128 * MIB,
) -> Iterator[AttentionRate]:
    """Yields the rates of a micro-batch of decoding rows, with `kv_bytes` of KV, and of a prompt's first 512 tokens."""
    token_bytes = shape.pages(codec).token_bytes(dtype.itemsize)
    num_rows = max(1, min(_MOST_ROWS, kv_bytes // (_DECODE_CONTEXT * token_bytes)))
    with torch.inference_mode():
        yield _measure(device, dtype, shape, codec, "decode", num_rows, 1, _DECODE_CONTEXT)
        yield _measure(device, dtype, shape, codec, "prefill", 1, _PREFILL_TOKENS, _PREFILL_TOKENS)


def _measure(
    device: torch.device,
    dtype: torch.dtype,
    shape: AttentionShape,
    codec: KVCodec | None,
    kind: Literal["decode", "prefill"],
    num_rows: int,
    num_queries: int,
    context: int,
) -> AttentionRate:
    table = np.arange(num_rows * context // _BLOCK_TOKENS, dtype=np.int64).reshape(num_rows, -1)
    pages = _full_pages(shape.pages(codec), table, device, dtype)
    starts = np.full(num_rows, context - num_queries, dtype=np.int64)
    lengths = np.full(num_rows, num_queries, dtype=np.int64)
    query = torch.randn(num_rows * num_queries, shape.num_heads, shape.key_width, device=device).to(dtype)
    attention, rule = best_attention(), AttentionRule(scale=shape.key_width**-0.5)
    layout = _layout(starts, lengths, table, device)
    seconds = best_seconds(device, lambda: attention.attend(query, pages, layout, rule), enough_seconds=_ENOUGH_SECONDS)
    num_pairs = num_rows * sum(range(context - num_queries + 1, context + 1))
    return AttentionRate(
        kind=kind,
        dtype=codec.name if codec else str(dtype).removeprefix("torch."),
        num_rows=num_rows,
        tokens_per_row=num_queries,
        context_tokens=context,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        key_width=shape.key_width,
        value_width=shape.value_width,
        operations_per_second=2 * num_pairs * shape.num_heads * (shape.key_width + shape.value_width) / seconds,
        kv_bytes_per_second=(pages.keys.nbytes + (0 if pages.values is None else pages.values.nbytes)) / seconds,
    )


def _full_pages(shape: PageShape, table: Integers, device: torch.device, dtype: torch.dtype) -> KVPages:
    """Returns pages whose blocks, those of `table` (R, B), are full of ones."""
    pages = make_pages(shape, table.size, _BLOCK_TOKENS, dtype, partial(zero_pages, device=device))
    num_tokens = table.shape[1] * _BLOCK_TOKENS
    keys = torch.ones(num_tokens, shape.num_kv_heads, shape.key_width, device=device)
    values = None if shape.latent else keys[..., :1].expand(-1, -1, shape.value_width)
    for row in table:
        pages.write(keys, values, _layout(np.array([0]), np.array([num_tokens]), row[None], device))
    return pages


def _layout(starts: Integers, lengths: Integers, table: Integers, device: torch.device) -> RaggedLayout:
    return RaggedLayout.build(
        block_tokens=_BLOCK_TOKENS, starts=starts, lengths=lengths, block_table=table, device=device
    )
