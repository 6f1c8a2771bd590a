"""Where new keys and values go, and what a block holds besides them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headrace.attention.grouped import GroupedAttention
from headrace.attention.ragged import AttentionBackend, KVPages, RaggedLayout
from headrace.attention.reference import ReferenceAttention
from headrace.attention.rule import AttentionRule
from tests.unit.attention.layouts import CPU


def layout_of(starts: list[int], lengths: list[int], table: list[list[int]], block_tokens: int = 4) -> RaggedLayout:
    return RaggedLayout.build(
        block_tokens=block_tokens,
        starts=np.array(starts),
        lengths=np.array(lengths),
        block_table=np.array(table),
        device=CPU,
    )


def pages_of(fill: float, *, latent: bool = False) -> KVPages:
    shape = (6, 1, 4, 2)
    return KVPages(keys=torch.full(shape, fill), values=None if latent else torch.full(shape, fill), value_width=2)


def test_every_new_token_goes_to_its_position() -> None:
    layout = layout_of([3, 0, 8], [3, 1, 1], [[5, 2, -1], [0, -1, -1], [-1, -1, 4]])
    assert layout.write_blocks.tolist() == [5, 2, 2, 0, 4]
    assert layout.write_offsets.tolist() == [3, 0, 1, 0, 0]
    assert layout.query_starts.tolist() == [0, 3, 4]


def test_writing_changes_nothing_but_the_places_of_the_new_tokens() -> None:
    pages, layout = pages_of(7.0), layout_of([2, 4], [1, 2], [[1, -1], [3, 0]])
    pages.write(torch.ones(3, 1, 2), torch.full((3, 1, 2), 2.0), layout)
    assert pages.values is not None
    assert pages.keys[1, 0, :, 0].tolist() == [7, 7, 1, 7]
    assert pages.values[1, 0, :, 0].tolist() == [7, 7, 2, 7]
    assert pages.values[0, 0, :, 0].tolist() == [2, 2, 7, 7]
    assert pages.values[3].eq(7).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_stored_as_0_under_a_key_of_nan(bad: float) -> None:
    pages, layout = pages_of(7.0), layout_of([0], [2], [[1]])
    pages.write(torch.ones(2, 1, 2), torch.tensor([[[2.0, bad]], [[2.0, 3.0]]]), layout)
    assert pages.values is not None
    assert pages.values[1, 0, :2].tolist() == [[2, 0], [2, 3]]
    assert pages.keys[1, 0, 0].isnan().all() and pages.keys[1, 0, 1].tolist() == [1, 1]


def test_a_latent_that_is_not_finite_makes_its_rotary_key_nan() -> None:
    pages, layout = KVPages(keys=torch.zeros(2, 1, 4, 3), values=None, value_width=2), layout_of([0], [2], [[1]])
    pages.write(torch.tensor([[[1.0, math.inf, 2.0]], [[1.0, 2.0, 3.0]]]), None, layout)
    assert pages.keys[1, 0, 0, :2].tolist() == [1, 0] and pages.keys[1, 0, 0, 2].isnan()
    assert pages.keys[1, 0, 1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("attention", [GroupedAttention(), ReferenceAttention()], ids=["grouped", "reference"])
def test_nan_reaches_only_those_who_see_it(attention: AttentionBackend) -> None:
    pages = KVPages(keys=torch.zeros(4, 1, 4, 2), values=torch.zeros(4, 1, 4, 2), value_width=2)
    layout = layout_of([0, 0], [6, 5], [[1, 2], [3, 0]])
    query, keys, values = torch.ones(3, 11, 1, 2)
    values = values.clone()
    values[3] = math.nan
    pages.write(keys, values, layout)
    attended = attention.attend(query, pages, layout, AttentionRule(scale=1.0))
    assert attended.isnan().any(dim=-1)[:, 0].tolist() == [False] * 3 + [True] * 3 + [False] * 5
