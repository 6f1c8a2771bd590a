"""Rows that begin alike name the same blocks, the library's attention reads these once for all, and no bit changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace.attention.paged import PagedAttention
from headrace.attention.ragged import AttentionBackend, KVPages, RaggedLayout
from headrace.attention.rule import AttentionRule
from headrace.compression.kv_codec import INT8
from headrace.executor.executor import Sampled
from headrace.kernels.library import library, usable
from headrace.models.products import LibraryProducts
from headrace.scheduler.sweep import Chunk
from tests.parity.harness import Row, Shape, generated, greedy, make_prompt, make_rig, tiny_engine_model
from tests.unit.kernels.visits import visits

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")
SYSTEM = make_prompt(70)
ROWS = [
    Row(prompt=prompt, num_new=6, arrival=arrival)
    for prompt, arrival in [
        (SYSTEM + make_prompt(3), 0),
        (SYSTEM + make_prompt(14), 0),
        (SYSTEM[:40] + make_prompt(7), 0),
        (make_prompt(33), 0),
        (SYSTEM + make_prompt(1), 2),
        (SYSTEM[:64] + make_prompt(9), 3),
    ]
]


@dataclass(kw_only=True)
class Watched:
    """The library's attention; keeps with what it was called.

    Attributes:
        calls: each layout, the query's and the pages' number of heads, and the window.
    """

    backend: AttentionBackend
    calls: list[tuple[RaggedLayout, int, int, int | None]] = field(default_factory=list)

    def attend(self, query: Tensor, pages: KVPages, layout: RaggedLayout, rule: AttentionRule) -> Tensor:
        self.calls.append((layout, query.shape[1], pages.keys.shape[1], rule.window))
        return self.backend.attend(query, pages, layout, rule)


@dataclass(kw_only=True)
class Logits:
    """A greedy sampler; keeps the logits of every token, for each sequence."""

    seen: dict[int, list[Tensor]] = field(default_factory=dict)

    def __call__(self, logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
        for chunk, row in zip(chunks, logits.split([chunk.num_logits for chunk in chunks]), strict=True):
            self.seen.setdefault(chunk.sequence_id, []).extend(row)
        return greedy(logits, chunks)


def run(name: str, shape: Shape) -> tuple[list[list[int]], dict[int, list[Tensor]], Watched]:
    found = library()
    assert found is not None
    watched, logits = Watched(backend=PagedAttention(found)), Logits()
    shape = replace(shape, attention=lambda: watched, products=lambda: LibraryProducts(found))
    return make_rig(tiny_engine_model(name), shape).run(ROWS, logits), logits.seen, watched


def num_read_for_several_rows(watched: Watched) -> int:
    """How many tiles of keys tokens of more than one row attended over together."""
    number = 0
    for layout, num_heads, num_kv_heads, window in watched.calls:
        found = visits(layout, num_heads=num_heads, num_kv_heads=num_kv_heads, window=window)
        rows = np.searchsorted(layout.query_starts, found[:, 2], side="right") - 1
        number += sum(len(np.unique(rows[found[:, 0] == visit])) > 1 for visit in np.unique(found[:, 0]))
    return number


@pytest.mark.parametrize(
    "shape",
    [Shape(), Shape(block_tokens=16, sweep_tokens=90, num_micro_batches=2), Shape(codec=INT8)],
    ids=["one micro-batch", "two micro-batches", "int8"],
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_a_shared_prefix_is_read_once_and_changes_no_bit(name: str, shape: Shape) -> None:
    tokens, logits, watched = run(name, shape)
    tokens_apart, logits_apart, watched_apart = run(name, replace(shape, shares_prefixes=False))
    assert num_read_for_several_rows(watched) > 10
    assert num_read_for_several_rows(watched_apart) == 0
    assert tokens == tokens_apart
    for sequence, seen in logits.items():
        assert torch.equal(torch.stack(seen), torch.stack(logits_apart[sequence]))
    if shape.codec is None:
        assert tokens == [generated(name, row.prompt, row.num_new) for row in ROWS]
