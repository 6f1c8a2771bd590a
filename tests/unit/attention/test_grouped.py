"""Attention over pages equals its definition, written out in tests as plainly as it can be."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from headrace.attention import grouped
from headrace.attention.grouped import GroupedAttention
from headrace.attention.paged import PagedAttention
from headrace.attention.ragged import AttentionBackend
from headrace.attention.reference import ReferenceAttention
from headrace.attention.rule import AttentionRule
from headrace.kernels.library import load, usable
from tests.unit.attention.layouts import Heads, Scene, attend_plainly, make_scene

BACKENDS: list[AttentionBackend] = [
    GroupedAttention(),
    ReferenceAttention(),
    *(PagedAttention(load(instruction_set)) for instruction_set in usable()),
]
MULTI_HEAD = Heads(num_heads=4, num_kv_heads=4, key_width=8, value_width=8)
GROUPED_QUERY = Heads(num_heads=6, num_kv_heads=2, key_width=8, value_width=8)
MULTI_QUERY = Heads(num_heads=4, num_kv_heads=1, key_width=8, value_width=8)
OTHER_VALUES = Heads(num_heads=4, num_kv_heads=2, key_width=8, value_width=5)
LATENT = Heads(num_heads=4, num_kv_heads=1, key_width=12, value_width=9, latent=True)
ALL_HEADS = {
    "multi-head": MULTI_HEAD,
    "grouped-query": GROUPED_QUERY,
    "multi-query": MULTI_QUERY,
    "narrow values": OTHER_VALUES,
    "latent": LATENT,
}
MIXED = [(0, 1), (0, 13), (37, 1), (8, 4), (3, 9), (40, 1), (21, 1), (0, 40)]
"""(start, length): rows that begin, decode, and go on inside of a block and at its edge."""
TOLERANCE = 2e-5
"""fp32 against float64, for outputs of size 1."""


def by_name(backend: AttentionBackend) -> str:
    return type(backend).__name__


def chunks_of_8(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query // 8 == key // 8


def rules(heads: Heads) -> dict[str, AttentionRule]:
    many = torch.arange(heads.num_heads)
    return {
        "plain": AttentionRule(scale=0.4),
        "window 1": AttentionRule(scale=0.4, window=1),
        "window 5": AttentionRule(scale=0.4, window=5),
        "window 1000": AttentionRule(scale=0.4, window=1000),
        "softcap": AttentionRule(scale=0.4, softcap=0.7),
        "sinks": AttentionRule(scale=0.4, sinks=many - 1.5),
        "slopes": AttentionRule(scale=0.4, slopes=0.5**many),
        "mask": AttentionRule(scale=0.4, allowed=chunks_of_8),
        "all": AttentionRule(scale=0.4, window=6, softcap=0.7, sinks=many - 1.5, slopes=0.5**many, allowed=chunks_of_8),
    }


def assert_as_defined(
    backends: list[AttentionBackend], scene: Scene, rule: AttentionRule, tolerance: float = TOLERANCE
) -> Tensor:
    defined = attend_plainly(scene, rule)
    for backend in backends:
        attended = backend.attend(scene.query, scene.pages, scene.layout, rule)
        assert attended.dtype == scene.query.dtype
        torch.testing.assert_close(attended.double(), defined, atol=tolerance, rtol=tolerance)
    return defined


@pytest.mark.parametrize("rule", rules(MULTI_HEAD))
@pytest.mark.parametrize("heads", ALL_HEADS)
def test_every_part_of_a_rule_counts(heads: str, rule: str) -> None:
    scene, rules_here = make_scene(3, ALL_HEADS[heads], MIXED), rules(ALL_HEADS[heads])
    defined = assert_as_defined(BACKENDS, scene, rules_here[rule])
    if rule not in ("plain", "window 1000"):
        plain = GroupedAttention().attend(scene.query, scene.pages, scene.layout, rules_here["plain"])
        assert not torch.allclose(defined, plain.double(), atol=1e-2)


@pytest.mark.parametrize("window", [1, 4, 5, 9])
def test_freed_blocks_are_not_missed(window: int) -> None:
    scene = make_scene(4, GROUPED_QUERY, MIXED, window=window)
    assert (scene.layout.block_table == -1).any()
    assert_as_defined(BACKENDS, scene, AttentionRule(scale=0.4, window=window))


@pytest.mark.parametrize("heads", ALL_HEADS)
@pytest.mark.parametrize("window", [None, 5])
def test_what_a_block_held_before_is_not_seen(window: int | None, heads: str) -> None:
    scene = make_scene(4, ALL_HEADS[heads], MIXED, window=window, garbage=1e30)
    assert_as_defined(BACKENDS, scene, AttentionRule(scale=0.4, window=window))


@pytest.mark.parametrize("seed", range(40))
def test_random_micro_batches_are_attended_as_defined(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    # Small limits, so that few tokens make many pieces and many tiles.
    monkeypatch.setattr(grouped, "PIECE_TOKENS", draw.choice([1, 3, 8, 128]))
    monkeypatch.setattr(grouped, "TILE_BYTES", draw.choice([1, 4_000, 8 << 20]))
    monkeypatch.setattr(grouped, "MAX_PADDING", draw.choice([1.0, 1.25, 4.0]))
    heads = draw.choice(list(ALL_HEADS.values()))
    chunks = [
        (draw.choice([0, 0, draw.randrange(1, 30)]), draw.choice([1, 1, draw.randrange(2, 24)]))
        for _ in range(draw.randrange(1, 9))
    ]
    rule = draw.choice(list(rules(heads).values()))
    scene = make_scene(seed, heads, chunks, block_tokens=draw.choice([1, 4, 16]), window=rule.window)
    assert_as_defined(BACKENDS, scene, rule)


@pytest.mark.parametrize("rule", ["plain", "window 5", "all"])
def test_long_chunks_are_cut_into_pieces(rule: str) -> None:
    scene = make_scene(5, MULTI_QUERY, [(0, 150), (0, 2), (70, 140), (150, 1)], block_tokens=32)
    assert grouped.PIECE_TOKENS < 140
    assert_as_defined([GroupedAttention()], scene, rules(MULTI_QUERY)[rule])


@pytest.mark.parametrize("heads", ALL_HEADS)
def test_bf16_pages_are_attended_in_fp32(heads: str) -> None:
    scene = make_scene(6, ALL_HEADS[heads], MIXED, dtype=torch.bfloat16)
    # The definition sees the same rounded numbers; only the result is rounded again, to 8 bits.
    assert_as_defined(BACKENDS, scene, rules(ALL_HEADS[heads])["all"], tolerance=2**-8)


@pytest.mark.parametrize("rule", rules(MULTI_HEAD))
def test_the_same_call_gives_the_same_bits(rule: str) -> None:
    first, second = (
        GroupedAttention().attend(scene.query, scene.pages, scene.layout, rules(GROUPED_QUERY)[rule])
        for scene in (make_scene(7, GROUPED_QUERY, MIXED), make_scene(7, GROUPED_QUERY, MIXED))
    )
    assert first.equal(second)


def test_layers_with_other_rules_and_sizes_share_a_layout() -> None:
    scene = make_scene(8, GROUPED_QUERY, MIXED)
    other = make_scene(8, OTHER_VALUES, MIXED)
    for rule in ("plain", "window 5", "mask", "plain", "all", "window 5"):
        assert_as_defined([GroupedAttention()], scene, rules(GROUPED_QUERY)[rule])
        mixed = Scene(query=other.query, pages=other.pages, layout=scene.layout, keys=other.keys, values=other.values)
        assert_as_defined([GroupedAttention()], mixed, rules(OTHER_VALUES)[rule])


@pytest.mark.parametrize("backend", BACKENDS, ids=by_name)
def test_attention_changes_neither_its_query_nor_the_pages(backend: AttentionBackend) -> None:
    scene = make_scene(9, MULTI_HEAD, MIXED)
    assert scene.pages.values is not None
    before = [each.clone() for each in (scene.query, scene.pages.keys, scene.pages.values)]
    backend.attend(scene.query, scene.pages, scene.layout, rules(MULTI_HEAD)["all"])
    assert all(a.equal(b) for a, b in zip(before, (scene.query, scene.pages.keys, scene.pages.values), strict=True))
