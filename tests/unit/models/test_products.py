"""Half-precision products in float32: rounded once, wherever blocks end, and only where they pay."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from headrace.kernels.library import library
from headrace.models import products as multiplying
from headrace.models.products import LibraryProducts, WideProducts, products

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
    monkeypatch.setattr(multiplying, "_BLOCK_NUMBERS", block_rows * 48)
    monkeypatch.setattr(multiplying, "_FEW_BLOCK_ROWS", block_rows)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_multiplies_what_torch_does(dtype: torch.dtype) -> None:
    found = library()
    if found is None:
        pytest.skip("no library is built")
    tokens, weight, bias = drawn(2, 9, 48, dtype=dtype), drawn(21, 48, dtype=dtype), drawn(21, dtype=dtype)
    with LibraryProducts(found):
        ours = linear(tokens, weight, bias)
        alone = linear(tokens[1, 3], weight, bias)
        of_doubles = linear(tokens.double(), weight.double())
        plain, turned = linear(tokens, weight), linear(tokens, weight.t().contiguous().t())
    assert torch.allclose(ours.double(), linear(tokens.double(), weight.double(), bias.double()), rtol=1e-2, atol=1e-5)
    assert torch.equal(alone, ours[1, 3])
    assert torch.equal(of_doubles, linear(tokens.double(), weight.double()))
    assert torch.equal(turned, plain)


class Routed(nn.Module):
    """A module with a product that is no linear layer's."""

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(tokens, torch.ones(3, tokens.shape[-1]))


def test_linear_layers_have_the_library_s_products_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = library()
    if found is None:
        pytest.skip("no library is built")
    tokens, layer = drawn(5, 48, dtype=torch.float32), nn.Linear(48, 21)
    own = LibraryProducts(found)
    with own, torch.inference_mode():
        expected = linear(tokens, layer.weight, layer.bias)
    # Embedding's docstring has an example with @.
    beside = nn.Sequential(layer, nn.SiLU(), nn.Embedding(3, 4))
    assert isinstance(own.put_into(beside.modules()), nullcontext)
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(nn.functional, "linear", None)
        assert torch.equal(layer(tokens), expected)
    layer.weight = nn.Parameter(2 * layer.weight.data, requires_grad=False)  # as a streamed weight takes its place
    assert torch.allclose(layer(tokens) - layer.bias, 2 * (expected - layer.bias), rtol=1e-5)


class Angles(nn.Module):
    """A module with a product, but without weights."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens @ torch.ones(tokens.shape[-1], 3)


class Columns(Angles):
    """Its weight lies as GPT-2's do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(48, 70, dtype=torch.float32))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.addmm(self.weight[0], tokens, self.weight) + tokens @ self.weight


def test_a_model_that_multiplies_itself_is_watched() -> None:
    found = library()
    if found is None:
        pytest.skip("no library is built")
    own, layer = LibraryProducts(found), nn.Linear(4, 4)
    for multiplying_itself in (Routed(), Columns()):
        assert own.put_into(list(nn.Sequential(layer, multiplying_itself).modules())) is own
    assert isinstance(own.put_into(list(nn.Sequential(layer, Angles()).modules())), nullcontext)


def test_products_by_other_names_are_the_library_s() -> None:
    found = library()
    if found is None:
        pytest.skip("no library is built")
    tokens, module = drawn(9, 48, dtype=torch.float32), Columns()
    expected = module(tokens)
    with LibraryProducts(found), torch.inference_mode():
        ours, alone = module(tokens), module(tokens[3:4])
        whole = torch.ones(2, 2, dtype=torch.int64) @ torch.ones(2, 2, dtype=torch.int64)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5) and torch.equal(alone[0], ours[3])
    assert whole.eq(2).all()


def test_what_is_entered_depends_on_library_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, none = torch.device("cpu"), None
    monkeypatch.setattr(multiplying, "is_slow", lambda dtype, device: dtype is torch.bfloat16)
    monkeypatch.setattr(multiplying, "library", lambda: none)
    assert isinstance(products(torch.bfloat16, cpu), WideProducts)
    assert isinstance(products(torch.float32, cpu), nullcontext)
    monkeypatch.undo()
    if library() is not None:
        assert isinstance(products(torch.float32, cpu), LibraryProducts)
    assert isinstance(products(torch.float32, torch.device("meta")), nullcontext)


@pytest.mark.parametrize("has_tiles", [True, False])
def test_bfloat16_is_multiplied_by_the_library_but_where_torch_has_tiles_for_it(
    monkeypatch: pytest.MonkeyPatch, has_tiles: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    entered = products(torch.bfloat16, torch.device("cpu"))
    assert library() is None or isinstance(entered, nullcontext if has_tiles else LibraryProducts)


@pytest.mark.parametrize("has_instructions", [True, False])
def test_float16_is_multiplied_by_the_library_but_where_torch_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    monkeypatch.setattr(multiplying, "is_slow", lambda dtype, device: not has_instructions)
    entered = products(torch.float16, torch.device("cpu"))
    assert library() is None or isinstance(entered, nullcontext if has_instructions else LibraryProducts)
