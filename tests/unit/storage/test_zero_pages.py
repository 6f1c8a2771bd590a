from __future__ import annotations

import sys

import psutil
import pytest
import torch

from headrace.storage.aligned import PAGE_BYTES
from headrace.storage.zero_pages import give_back_pages, zero_pages
from headrace.units import MIB

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pages_are_zeros_of_the_asked_shape_aligned_to_pages(dtype: torch.dtype) -> None:
    pages = zero_pages((3, 5, 7), dtype, CPU)
    assert pages.shape == (3, 5, 7)
    assert pages.dtype is dtype
    assert pages.data_ptr() % PAGE_BYTES == 0
    assert not pages.any()


def test_a_page_costs_memory_only_when_it_is_used() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    pages = zero_pages((256, MIB), torch.uint8, CPU)
    assert process.memory_info().rss - before < 32 * MIB
    pages[:128].fill_(1)
    assert process.memory_info().rss - before > 120 * MIB


def test_an_empty_tensor_is_possible() -> None:
    assert zero_pages((0, 4), torch.float32, CPU).shape == (0, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes pages back")
def test_whole_pages_of_rows_are_given_back_and_zero_again() -> None:
    process = psutil.Process()
    pages = zero_pages((64, MIB), torch.uint8, CPU).fill_(1)
    before = process.memory_info().rss
    give_back_pages(pages, 16, 48)
    assert before - process.memory_info().rss > 28 * MIB
    assert not pages[16:48].any()
    assert pages[:16].all() and pages[48:].all()


def test_rows_that_are_no_whole_page_stay() -> None:
    pages = zero_pages((64, 100), torch.uint8, CPU).fill_(1)
    give_back_pages(pages, 3, 40)
    assert pages.all()
