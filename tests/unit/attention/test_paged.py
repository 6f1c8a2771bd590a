"""The library's attention: results do not depend on what is computed beside them; narrow types; bad numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from headrace.attention.grouped import GroupedAttention
from headrace.attention.paged import PagedAttention
from headrace.attention.ragged import RaggedLayout
from headrace.attention.reference import ReferenceAttention
from headrace.attention.rule import AttentionRule
from headrace.compression.kv_codec import INT4, INT8, KVCodec
from headrace.kernels.library import load, usable
from tests.unit.attention.layouts import CPU, Heads, Scene, attend_plainly, make_scene

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")
BACKENDS = [PagedAttention(load(name)) for name in usable()]
IN_FP32 = [PagedAttention(load(name)) for name in usable() if name != "avx512_bf16"]
IN_PAIRS = [PagedAttention(load(name)) for name in usable() if name == "avx512_bf16"]
"""Of those that multiply pairs of bfloat16, if there is one here."""
SHAPES = {
    "multi-head": Heads(num_heads=4, num_kv_heads=4, key_width=64, value_width=64),
    "grouped-query": Heads(num_heads=12, num_kv_heads=2, key_width=48, value_width=48),
    "multi-query of many heads": Heads(num_heads=71, num_kv_heads=1, key_width=16, value_width=16),
    "latent": Heads(num_heads=8, num_kv_heads=1, key_width=72, value_width=64, latent=True),
    "odd": Heads(num_heads=6, num_kv_heads=3, key_width=37, value_width=21),
}
KEPT_IN: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.bfloat16, "codec": INT8},
    "int4": {"dtype": torch.float32, "codec": INT4},
}
RULES = {
    "plain": AttentionRule(scale=0.3),
    "window": AttentionRule(scale=0.3, window=40),
    "softcap": AttentionRule(scale=0.3, softcap=3.0),
}


def alone(backend: PagedAttention, scene: Scene, rule: AttentionRule, row: int, first: int, stop: int) -> Tensor:
    """Attends for tokens `first` to `stop` of a row's chunk, in a micro-batch of their own."""
    layout = RaggedLayout.build(
        block_tokens=scene.layout.block_tokens,
        starts=scene.layout.starts[row : row + 1] + first,
        lengths=np.array([stop - first]),
        block_table=scene.layout.block_table[row : row + 1],
        device=CPU,
    )
    begin = int(scene.layout.query_starts[row])
    return backend.attend(scene.query[begin + first : begin + stop], scene.pages, layout, rule)


@pytest.mark.parametrize("kept_in", KEPT_IN)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("heads", SHAPES)
def test_a_result_is_bitwise_the_same_whatever_is_computed_beside_it(heads: str, rule: str, kept_in: str) -> None:
    draw = random.Random(len(heads) + len(rule))
    chunks = [(draw.randrange(150), draw.choice([1, 1, 5, 33, 90])) for _ in range(5)]
    scene = make_scene(7, SHAPES[heads], chunks, block_tokens=16, **KEPT_IN[kept_in])
    for backend in BACKENDS:
        together = backend.attend(scene.query, scene.pages, scene.layout, RULES[rule])
        pieces = []
        for row, (_, length) in enumerate(chunks):
            cuts = sorted({0, length, *(draw.randrange(length + 1) for _ in range(3))})
            pieces += [alone(backend, scene, RULES[rule], row, *cut) for cut in pairwise(cuts)]
        assert torch.equal(together, torch.cat(pieces))


def family(seed: int, block_tokens: int) -> tuple[list[tuple[int, int]], dict[int, tuple[int, int]]]:
    """Returns the chunks of rows that begin alike, each like an earlier one, and what they share; see `make_scene`."""
    draw = random.Random(seed)
    chunks = [(draw.randrange(100, 200), draw.choice([1, 40]))]
    shared = {}
    for row in range(1, 12):
        earlier = draw.randrange(row)
        most = sum(chunks[earlier]) // block_tokens
        num_shared = draw.choice([most, draw.randrange(most + 1)])
        start = max(0, num_shared * block_tokens + draw.choice([0, 0, 7, 70, -50]))
        chunks.append((start, draw.choice([1, 1, 1, 3, 20])))
        shared[row] = earlier, min(num_shared, sum(chunks[row]) // block_tokens)
    return chunks, shared


def rule_of_heads(name: str, heads: Heads) -> AttentionRule:
    many = torch.arange(heads.num_heads)
    of_heads = {
        "sinks": AttentionRule(scale=0.3, sinks=many / 10 - 1.5),
        "slopes": AttentionRule(scale=0.3, slopes=0.5 ** (many % 8 + 1)),
    }
    return {**RULES, **of_heads}[name]


@pytest.mark.parametrize("kept_in", KEPT_IN)
@pytest.mark.parametrize("name", [*RULES, "sinks", "slopes"])
@pytest.mark.parametrize("heads", SHAPES)
def test_rows_that_share_blocks_attend_bitwise_as_if_each_were_alone(heads: str, name: str, kept_in: str) -> None:
    rule = rule_of_heads(name, SHAPES[heads])
    for seed, block_tokens in enumerate((4, 32, 48), start=len(heads) + len(name)):
        chunks, shared = family(seed, block_tokens)
        scene = make_scene(
            seed,
            SHAPES[heads],
            chunks,
            block_tokens=block_tokens,
            window=rule.window,
            garbage=3.0,
            shared=shared,
            **KEPT_IN[kept_in],
        )
        for backend in BACKENDS:
            rows = [alone(backend, scene, rule, row, 0, length) for row, (_, length) in enumerate(chunks)]
            together = backend.attend(scene.query, scene.pages, scene.layout, rule)
            assert torch.equal(together, torch.cat(rows))


def test_rows_that_share_blocks_attend_bitwise_the_same_with_more_threads(num_threads: Callable[[int], None]) -> None:
    chunks, shared = family(5, 32)
    scene = make_scene(5, SHAPES["grouped-query"], chunks, block_tokens=32, shared=shared)
    for backend in BACKENDS:
        rows = [alone(backend, scene, RULES["plain"], row, 0, length) for row, (_, length) in enumerate(chunks)]
        for number in (2, 5):
            num_threads(number)
            together = backend.attend(scene.query, scene.pages, scene.layout, RULES["plain"])
            assert torch.equal(together, torch.cat(rows))


@pytest.mark.parametrize("name", [*RULES, "sinks", "slopes"])
def test_rows_that_share_blocks_attend_as_the_definition_says(name: str) -> None:
    heads = SHAPES["grouped-query"]
    rule, (chunks, shared) = rule_of_heads(name, heads), family(3, 32)
    scene = make_scene(3, heads, chunks, block_tokens=32, window=rule.window, shared=shared)
    defined = attend_plainly(scene, rule)
    for backend in BACKENDS:
        attended = backend.attend(scene.query, scene.pages, scene.layout, rule)
        torch.testing.assert_close(attended.double(), defined, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("codec", [None, INT8, INT4], ids=["plain", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", SHAPES)
def test_narrow_types_are_rounded_once_at_the_end(heads: str, dtype: torch.dtype, codec: KVCodec | None) -> None:
    scene = make_scene(5, SHAPES[heads], [(0, 70), (44, 1), (100, 3)], block_tokens=16, dtype=dtype, codec=codec)
    defined = attend_plainly(scene, RULES["plain"])
    for backend in IN_FP32 if dtype is torch.bfloat16 and codec is None else BACKENDS:
        attended = backend.attend(scene.query, scene.pages, scene.layout, RULES["plain"])
        assert attended.dtype == dtype
        torch.testing.assert_close(attended, defined.to(dtype), atol=1e-5, rtol=torch.finfo(dtype).eps)


@pytest.mark.skipif(not IN_PAIRS, reason="this processor does not multiply pairs of bfloat16")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("heads", SHAPES)
def test_of_pairs_the_weights_are_rounded_too(heads: str, rule: str) -> None:
    """Each weight moves by 2**-9 of itself at most, so a result by that of the largest value, before it is rounded."""
    chunks = [(0, 70), (44, 1), (100, 3)]
    scene = make_scene(5, SHAPES[heads], chunks, block_tokens=32, dtype=torch.bfloat16, window=RULES[rule].window)
    defined = attend_plainly(scene, RULES[rule])
    values = scene.pages.keys if scene.pages.values is None else scene.pages.values
    moved = 2**-9 * float(values[~values.isnan()].abs().max())
    (backend,) = IN_PAIRS
    attended = backend.attend(scene.query, scene.pages, scene.layout, RULES[rule])
    torch.testing.assert_close(attended.double(), defined.double(), atol=moved + 1e-5, rtol=2**-8)


def test_a_value_that_is_no_number_reaches_those_who_see_it_and_nobody_else() -> None:
    heads = SHAPES["multi-head"]
    scene = make_scene(2, heads, [(0, 40), (0, 40)], block_tokens=16)
    lost = int(scene.layout.block_table[0, 1])  # positions 16 to 31 of the first row
    scene.pages.keys[lost, :, 4] = float("nan")
    for backend in BACKENDS:
        attended = backend.attend(scene.query, scene.pages, scene.layout, RULES["plain"])
        assert not attended[:20].isnan().any()
        assert attended[20:40].isnan().all()
        assert not attended[40:].isnan().any()


@pytest.mark.parametrize("codec", [None, INT8, INT4], ids=["plain", "int8", "int4"])
def test_pages_that_lie_among_others_are_read_where_they_are(codec: KVCodec | None) -> None:
    heads = SHAPES["grouped-query"]
    scene = make_scene(4, heads, [(30, 20), (3, 1)], block_tokens=16, codec=codec)
    defined = attend_plainly(scene, RULES["plain"])
    values = scene.pages.values
    assert values is not None
    records = torch.stack([scene.pages.keys, values], dim=1)
    pages = replace(scene.pages, keys=records[:, 0], values=records[:, 1])
    for backend in (*BACKENDS, GroupedAttention(), ReferenceAttention()):
        attended = backend.attend(scene.query, pages, scene.layout, RULES["plain"])
        torch.testing.assert_close(attended.double(), defined, atol=2e-5, rtol=2e-5)
