"""Attention over keys and values in codes is attention over the numbers that they stand for, on every path."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from headrace.attention.grouped import GroupedAttention
from headrace.attention.paged import PagedAttention
from headrace.attention.ragged import AttentionBackend, RaggedLayout
from headrace.attention.reference import ReferenceAttention
from headrace.attention.rule import AttentionRule
from headrace.compression.kv_codec import INT4, INT8, KV_CODECS, KVCodec
from headrace.kernels.library import load, usable
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.pools import make_pages
from tests.unit.attention.layouts import CPU, Heads, Scene, attend_plainly, make_scene

BACKENDS: list[AttentionBackend] = [
    GroupedAttention(),
    ReferenceAttention(),
    *(PagedAttention(load(instruction_set)) for instruction_set in usable()),
]
CODECS = list(KV_CODECS.values())
SHAPES = {
    "multi-head of 40": Heads(num_heads=4, num_kv_heads=4, key_width=40, value_width=40),
    "grouped-query of 80": Heads(num_heads=8, num_kv_heads=2, key_width=80, value_width=80),
    "multi-query of 96": Heads(num_heads=9, num_kv_heads=1, key_width=96, value_width=96),
    "grouped-query of 128": Heads(num_heads=8, num_kv_heads=2, key_width=128, value_width=128),
    "odd": Heads(num_heads=6, num_kv_heads=3, key_width=37, value_width=21),
    "latent": Heads(num_heads=4, num_kv_heads=1, key_width=72, value_width=64, latent=True),
    "odd latent": Heads(num_heads=4, num_kv_heads=1, key_width=150, value_width=133, latent=True),
    "latent that is its whole key": Heads(num_heads=4, num_kv_heads=1, key_width=48, value_width=48, latent=True),
}
MIXED = [(0, 1), (0, 13), (37, 1), (8, 4), (3, 9), (96, 1), (70, 40), (0, 40)]
TOLERANCE = 5e-5
"""fp32 against float64, for outputs of size 1 of keys whose scale and minimum are multiplied out."""


def by_name(codec: KVCodec) -> str:
    return codec.name


def rules(heads: Heads) -> dict[str, AttentionRule]:
    many = torch.arange(heads.num_heads)
    return {
        "plain": AttentionRule(scale=0.1),
        "window": AttentionRule(scale=0.1, window=5),
        "softcap": AttentionRule(scale=0.1, softcap=0.7),
        "sinks": AttentionRule(scale=0.1, sinks=many - 1.5),
        "slopes": AttentionRule(scale=0.1, slopes=0.5**many),
        "mask": AttentionRule(scale=0.1, allowed=lambda batch, head, query, key: query // 8 == key // 8),
    }


def assert_as_defined(scene: Scene, rule: AttentionRule) -> None:
    defined = attend_plainly(scene, rule)
    for backend in BACKENDS:
        attended = backend.attend(scene.query, scene.pages, scene.layout, rule)
        torch.testing.assert_close(attended.double(), defined, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("rule", rules(SHAPES["odd"]))
@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_every_rule_is_followed_over_codes(codec: KVCodec, heads: str, rule: str) -> None:
    shape = SHAPES[heads]
    for block_tokens in (4, 32):
        assert_as_defined(make_scene(3, shape, MIXED, block_tokens=block_tokens, codec=codec), rules(shape)[rule])


@pytest.mark.parametrize("heads", SHAPES)
@pytest.mark.parametrize("codec", CODECS, ids=by_name)
@pytest.mark.parametrize("window", [None, 5])
def test_bytes_that_a_block_held_before_are_not_seen(window: int | None, codec: KVCodec, heads: str) -> None:
    scene = make_scene(4, SHAPES[heads], MIXED, window=window, garbage=1, codec=codec)
    assert_as_defined(scene, AttentionRule(scale=0.1, window=window))


@pytest.mark.parametrize("seed", range(20))
def test_random_micro_batches_are_attended_as_defined(seed: int) -> None:
    draw = random.Random(seed)
    heads = draw.choice(list(SHAPES.values()))
    chunks = [
        (draw.choice([0, 0, draw.randrange(1, 90)]), draw.choice([1, 1, draw.randrange(2, 40)]))
        for _ in range(draw.randrange(1, 7))
    ]
    rule = draw.choice(list(rules(heads).values()))
    block_tokens = draw.choice([1, 16, 32, 64])
    scene = make_scene(seed, heads, chunks, block_tokens=block_tokens, window=rule.window, codec=draw.choice(CODECS))
    assert_as_defined(scene, rule)


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_codes_are_near_the_numbers_that_were_written(codec: KVCodec) -> None:
    heads, rule = SHAPES["grouped-query of 128"], AttentionRule(scale=128**-0.5)
    plain, coded = (make_scene(5, heads, MIXED, codec=each) for each in (None, codec))
    exact, near = (attend_plainly(scene, rule) for scene in (plain, coded))
    error = (near - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < {INT8: 0.01, INT4: 0.15}[codec]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("latent", [False, True], ids=["values", "latents"])
@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_a_value_that_is_not_finite_reaches_those_who_see_it_and_nobody_else(
    codec: KVCodec, latent: bool, bad: float
) -> None:
    shape = PageShape(num_kv_heads=1, key_width=12, value_width=8, latent=latent, codec=codec)
    layout = RaggedLayout.build(
        block_tokens=4,
        starts=np.array([0, 0]),
        lengths=np.array([6, 5]),
        block_table=np.array([[1, 2], [3, 0]]),
        device=CPU,
    )
    query, keys = torch.ones(2, 11, 1, 12)
    values = torch.ones(11, 1, 8)
    (keys if latent else values)[3, 0, 2] = bad
    for backend in BACKENDS:
        pages = make_pages(shape, 4, 4, torch.float32, lambda size, element: torch.zeros(size, dtype=element))
        pages.write(keys, None if latent else values, layout)
        attended = backend.attend(query, pages, layout, AttentionRule(scale=1.0))
        assert attended.isnan().any(dim=-1)[:, 0].tolist() == [False] * 3 + [True] * 3 + [False] * 5


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_writing_changes_nothing_but_the_places_of_the_new_tokens(codec: KVCodec) -> None:
    shape = PageShape(num_kv_heads=2, key_width=12, value_width=8, latent=False, codec=codec)
    pages = make_pages(shape, 3, 4, torch.float32, lambda size, element: torch.full(size, 7, dtype=element))
    layout = RaggedLayout.build(
        block_tokens=4, starts=np.array([2]), lengths=np.array([3]), block_table=np.array([[1, 0]]), device=CPU
    )
    pages.write(torch.randn(3, 2, 12), torch.randn(3, 2, 8), layout)
    assert pages.values is not None
    for page in (pages.keys, pages.values):
        written = page.ne(7).any(dim=-1).all(dim=1)
        assert written.tolist() == [[True, False, False, False], [False, False, True, True], [False] * 4]
        assert page.eq(7).all(dim=-1).all(dim=1).equal(~written)
