"""A block is the same bytes at home and in a slab, whatever it is kept in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.attention.ragged import RaggedLayout
from headrace.compression.kv_codec import INT4, INT8, KVCodec
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.slab import BlockRecord, Slab, slab_bytes
from headrace.storage.aligned import AlignedBuffer, pages_above

PAGES = PageShape(num_kv_heads=2, key_width=40, value_width=24, latent=False)
LATENT = PageShape(num_kv_heads=1, key_width=24, value_width=16, latent=True)
NUM_BLOCKS = 3


def record_of(shape: PageShape, codec: KVCodec | None) -> BlockRecord:
    return BlockRecord(shape=replace(shape, codec=codec), block_tokens=4, dtype=torch.bfloat16)


@pytest.mark.parametrize("codec", [None, INT8, INT4], ids=["plain", "int8", "int4"])
@pytest.mark.parametrize("shape", [PAGES, LATENT], ids=["keys and values", "latents"])
def test_records_that_are_copied_span_by_span_are_the_pages_that_were_written(
    shape: PageShape, codec: KVCodec | None
) -> None:
    record = record_of(shape, codec)
    slab = Slab(NUM_BLOCKS, {record}, AlignedBuffer)
    pages = slab.pages(record)
    layout = RaggedLayout.build(
        block_tokens=4,
        starts=np.array([0]),
        lengths=np.array([10]),
        block_table=np.array([[2, 0, 1]]),
        device=torch.device("cpu"),
    )
    keys = torch.randn(10, shape.num_kv_heads, shape.key_width).bfloat16()
    values = None if shape.latent else torch.randn(10, shape.num_kv_heads, shape.value_width).bfloat16()
    pages.write(keys, values, layout)
    home = bytearray()
    for start, end in slab.spans(record, 0, NUM_BLOCKS):
        home += slab.buffer.bytes[start:end]
    assert len(home) == NUM_BLOCKS * record.num_bytes
    records = torch.frombuffer(home, dtype=record.element).view(NUM_BLOCKS, -1)
    at_home = record.pages_of(records)
    assert at_home.keys.equal(pages.keys) and at_home.codec == codec
    if pages.values is not None:
        assert at_home.values is not None and at_home.values.equal(pages.values)
    slab.close()


def test_a_slab_has_room_for_its_largest_record() -> None:
    plain, coded = record_of(PAGES, None), record_of(PAGES, INT4)
    assert plain.num_bytes == 2 * 4 * (40 + 24) * 2
    assert coded.num_bytes == 2 * 4 * (20 + 4 + 12 + 4)
    assert slab_bytes(100, {plain, coded}) == pages_above(100 * plain.key_bytes) + pages_above(100 * plain.value_bytes)


def test_a_record_in_codes_says_that_it_is_no_whole_page() -> None:
    wide = PageShape(num_kv_heads=8, key_width=128, value_width=128, latent=False)
    whole = BlockRecord(shape=wide, block_tokens=32, dtype=torch.bfloat16)
    assert whole.is_aligned
    assert not replace(whole, shape=replace(wide, codec=INT8)).is_aligned
    assert replace(whole, shape=replace(wide, num_kv_heads=32, codec=INT8)).is_aligned
