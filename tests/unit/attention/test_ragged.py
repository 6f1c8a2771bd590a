"""Where new keys and values go, and what a block holds besides them."""

from __future__ import annotations

import numpy as np
import torch

from headrace.attention.ragged import KVPages, RaggedLayout
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


def test_writing_changes_nothing_before_a_row_and_clears_the_rest_of_a_block_that_begins() -> None:
    pages, layout = pages_of(7.0), layout_of([2, 4], [1, 2], [[1, -1], [3, 0]])
    pages.write(torch.ones(3, 1, 2), torch.full((3, 1, 2), 2.0), layout)
    assert pages.values is not None
    assert pages.keys[1, 0, :, 0].tolist() == [7, 7, 1, 7]
    assert pages.values[1, 0, :, 0].tolist() == [7, 7, 2, 7]
    assert pages.values[0, 0, :, 0].tolist() == [2, 2, 0, 0]
    assert pages.values[3].eq(7).all()


def test_latent_pages_are_cleared_where_their_keys_are_read_as_values() -> None:
    pages, layout = pages_of(float("nan"), latent=True), layout_of([0], [1], [[2]])
    pages.write(torch.ones(1, 1, 2), None, layout)
    assert pages.keys[2, 0, :, 0].tolist() == [1, 0, 0, 0]


def test_a_copied_block_keeps_only_what_both_rows_have() -> None:
    pages = pages_of(float("nan"))
    assert pages.values is not None
    pages.values[1] = torch.arange(8.0).view(1, 4, 2)
    pages.copy(1, 3, 2)
    assert pages.values[3, 0].tolist() == [[0, 1], [2, 3], [0, 0], [0, 0]]
