"""Random ragged micro-batches over paged keys and values, and attention on them as the definition says."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headrace.attention.ragged import KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule
from headrace.compression.kv_codec import KVCodec
from headrace.compression.kv_codes import decode, encode
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.pools import make_pages

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Sizes of one layer; `latent`: a value is the beginning of its key."""

    num_heads: int
    num_kv_heads: int
    key_width: int
    value_width: int
    latent: bool = False


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A micro-batch whose new keys and values are in the pages, and each row's own keys and values in order.

    Attributes:
        query: (T, H, D).
        keys, values: per row (L, K, D) and (L, K, V), as the pages hold them.
    """

    query: Tensor
    pages: KVPages
    layout: RaggedLayout
    keys: list[Tensor]
    values: list[Tensor]


def make_scene(
    seed: int,
    heads: Heads,
    chunks: Sequence[tuple[int, int]],
    *,
    block_tokens: int = 4,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    garbage: float = 0.0,
    codec: KVCodec | None = None,
    shared: Mapping[int, tuple[int, int]] | None = None,
) -> Scene:
    """Puts rows of (start, length) into pages at random blocks.

    Args:
        window: blocks that no token of a row reads any more are freed: -1 in the table.
        garbage: what the pages hold where nothing was written; any number but 0 makes codes of NaN.
        codec: what the pages hold keys and values in.
        shared: for a row, an earlier one and how many of that one's first blocks are its own first blocks, too.
    """
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    stops = [start + length for start, length in chunks]
    num_columns = max(-(-stop // block_tokens) for stop in stops)
    table = np.full((len(chunks), num_columns), -1, dtype=np.int64)
    num_blocks = len(chunks) * num_columns + 3
    blocks = list(range(num_blocks - 1))
    draw.shuffle(blocks)
    for row, ((start, _), stop) in enumerate(zip(chunks, stops, strict=True)):
        first = 0 if window is None else max(0, start - window + 1) // block_tokens
        for column in range(first, -(-stop // block_tokens)):
            table[row, column] = blocks.pop()
    for row, (earlier, num_shared) in (shared or {}).items():
        own, others = table[row, :num_shared], table[earlier, :num_shared]
        own[:] = np.where((own < 0) | (others < 0), own, others)
    layout = RaggedLayout.build(
        block_tokens=block_tokens,
        starts=np.array([start for start, _ in chunks]),
        lengths=np.array([length for _, length in chunks]),
        block_table=table,
        device=CPU,
    )
    shape = PageShape(
        num_kv_heads=heads.num_kv_heads,
        key_width=heads.key_width,
        value_width=heads.value_width,
        latent=heads.latent,
        codec=codec,
    )
    fill = garbage if codec is None else 0xFF * bool(garbage)
    pages = make_pages(
        shape, num_blocks, block_tokens, dtype, lambda size, element: torch.full(size, fill, dtype=element)
    )
    keys = [noise(stop, heads.num_kv_heads, heads.key_width) for stop in stops]
    values = [
        own[..., : heads.value_width] if heads.latent else noise(stop, heads.num_kv_heads, heads.value_width)
        for own, stop in zip(keys, stops, strict=True)
    ]
    for row, (earlier, num_shared) in (shared or {}).items():
        num_tokens = min(num_shared * block_tokens, stops[row], stops[earlier])
        for numbers in (keys, values):
            numbers[row][:num_tokens] = numbers[earlier][:num_tokens]
    begun = [row for row, (start, _) in enumerate(chunks) if start]
    if begun:
        past = RaggedLayout.build(
            block_tokens=block_tokens,
            starts=np.zeros(len(begun), dtype=np.int64),
            lengths=np.array([chunks[row][0] for row in begun]),
            block_table=np.where(table[begun] < 0, len(pages.keys) - 1, table[begun]),  # what was freed goes nowhere
            device=CPU,
        )
        pages.write(
            *_packed(heads, [(keys[row][: chunks[row][0]], values[row][: chunks[row][0]]) for row in begun]), past
        )
    new = [(keys[row][start:], values[row][start:]) for row, (start, _) in enumerate(chunks)]
    pages.write(*_packed(heads, new), layout)
    query = noise(sum(length for _, length in chunks), heads.num_heads, heads.key_width)
    if codec is not None:
        keys = [_kept(own, codec, border=heads.value_width if heads.latent else heads.key_width) for own in keys]
        values = [_kept(own, codec, border=heads.value_width) for own in values]
    return Scene(query=query, pages=pages, layout=layout, keys=keys, values=values)


def _kept(numbers: Tensor, codec: KVCodec, border: int) -> Tensor:
    """What comes back of records up to `border`, and behind it."""
    parts = [part for part in (numbers[..., :border], numbers[..., border:]) if part.shape[-1]]
    return torch.cat([decode(encode(part, codec), part.shape[-1], codec) for part in parts], dim=-1)


def _packed(heads: Heads, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor | None]:
    keys, values = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return keys, None if heads.latent else values


def attend_plainly(scene: Scene, rule: AttentionRule) -> Tensor:
    """Returns (T, H, V) in float64, one query and one head at a time."""
    results, token = [], 0
    for row, (start, length) in enumerate(
        zip(scene.layout.starts.tolist(), scene.layout.lengths.tolist(), strict=True)
    ):
        keys, values = scene.keys[row].double(), scene.values[row].double()
        for position in range(start, start + length):
            first = 0 if rule.window is None else max(0, position - rule.window + 1)
            seen = [key for key in range(first, position + 1) if _is_allowed(rule, position, key)]
            results.append(_attend_token(scene.query[token].double(), keys[seen], values[seen], seen, rule))
            token += 1
    return torch.stack(results)


def _is_allowed(rule: AttentionRule, query: int, key: int) -> bool:
    zero = torch.tensor(0)
    return rule.allowed is None or bool(rule.allowed(zero, zero, torch.tensor(query), torch.tensor(key)))


def _attend_token(query: Tensor, keys: Tensor, values: Tensor, seen: list[int], rule: AttentionRule) -> Tensor:
    """query (H, D), keys (L, K, D), values (L, K, V), seen (L) positions -> (H, V)."""
    of_head = [head // (len(query) // keys.shape[1]) for head in range(len(query))]
    scores = torch.einsum("hd,lhd->hl", query, keys[:, of_head]) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if rule.slopes is not None:
        scores = scores + rule.slopes.double()[:, None] * torch.tensor(seen)
    weights = scores.exp()
    total = weights.sum(1) + (0 if rule.sinks is None else rule.sinks.double().exp())
    return torch.einsum("hl,lhv->hv", weights / total[:, None], values[:, of_head])
