"""Half-precision products in float32: rounded once, wherever blocks end, and only where they pay."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from headrace.models import wide_products
from headrace.models.wide_products import WideProducts, products

linear = torch.nn.functional.linear


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("num_tokens", [2, 20, 40])
@pytest.mark.parametrize("block_rows", [3, 7, 100])
def test_products_are_rounded_once_wherever_blocks_end(
    dtype: torch.dtype, with_bias: bool, num_tokens: int, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_products, "_BLOCK_NUMBERS", block_rows * 48)
    monkeypatch.setattr(wide_products, "_FEW_BLOCK_ROWS", block_rows)
    tokens, weight = drawn(2, num_tokens, 48, dtype=dtype), drawn(21, 48, dtype=dtype)
    bias = drawn(21, dtype=dtype) if with_bias else None
    with WideProducts():
        found = linear(tokens, weight, bias)
    exact = linear(tokens.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype is dtype
    # Sums in float32 may fall to the other side of a border between two numbers of the dtype: by one, and rarely.
    assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert (found == exact.to(dtype)).float().mean() > 0.98


def test_few_tokens_and_full_precision_are_left_to_torch() -> None:
    wide = WideProducts()
    for tokens, weight in ((drawn(3, 48), drawn(8, 48)), (drawn(64, 48).float(), drawn(8, 48).float())):
        with wide:
            found = linear(tokens, weight)
        assert torch.equal(found, linear(tokens, weight))
    assert not wide._block.numel()


def test_it_is_entered_where_the_cpu_lacks_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_products, "is_slow", lambda dtype, device: dtype is torch.bfloat16)
    assert isinstance(products(torch.bfloat16, torch.device("cpu")), WideProducts)
    assert isinstance(products(torch.float32, torch.device("cpu")), nullcontext)
