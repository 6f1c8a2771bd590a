"""Aligned memory begins at a page border and is given back when nobody looks at it."""

from __future__ import annotations

import sys

import pytest
import torch

from headrace.storage.aligned import HUGE_PAGE_BYTES, PAGE_BYTES, AlignedBuffer, pages_above, pages_below
from tests.memory_maps import HAS_HUGE_PAGES, vm_flags


def test_page_borders() -> None:
    assert [pages_below(n) for n in (0, 1, 4095, 4096, 4097)] == [0, 0, 0, 4096, 4096]
    assert [pages_above(n) for n in (0, 1, 4095, 4096, 4097)] == [0, 4096, 4096, 4096, 8192]


def test_a_buffer_begins_at_a_page_border_and_ends_at_one() -> None:
    with AlignedBuffer(5000) as buffer:
        assert buffer.num_bytes == 2 * PAGE_BYTES == len(buffer.bytes)
        assert buffer.tensor(0, (8,), torch.uint8).data_ptr() % PAGE_BYTES == 0


def test_tensors_look_at_the_buffer_itself() -> None:
    buffer = AlignedBuffer(100)
    tensor = buffer.tensor(8, (2, 3), torch.float32)
    tensor.fill_(1.5)
    assert bytes(buffer.bytes[8:32]) == bytes(torch.full((6,), 1.5).view(torch.uint8).numpy())
    buffer.close()
    assert tensor.sum() == 9  # the memory lives as long as the tensor


def test_a_tensor_of_no_numbers_needs_no_bytes() -> None:
    with AlignedBuffer(0) as buffer:
        assert buffer.tensor(0, (0, 4), torch.float32).shape == (0, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how memory is mapped")
def test_memory_is_the_processs_own_and_asks_for_huge_pages() -> None:
    buffer = AlignedBuffer(3 * HUGE_PAGE_BYTES)
    flags = vm_flags(buffer.tensor(0, (1,), torch.uint8).data_ptr())
    assert "sh" not in flags
    assert "hg" in flags or not HAS_HUGE_PAGES
