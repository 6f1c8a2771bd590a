"""A packed layer computes what its unpacked weight would, with the library and without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headrace.compression.packed_linear import PackedLinear, product_with, rounded_tokens
from headrace.compression.weight_codecs import Int4Codec, Int8Codec, WeightCodec
from headrace.kernels.library import CHOICE, library, usable

CODECS: list[WeightCodec] = [Int8Codec(), Int8Codec(outliers=2.0), Int4Codec()]


@pytest.fixture(params=[*usable(), "none"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(CHOICE, request.param)
    library.cache_clear()
    request.addfinalizer(library.cache_clear)
    name: str = request.param
    return name


def layer(codec: WeightCodec, dtype: torch.dtype) -> PackedLinear:
    generator = torch.Generator().manual_seed(1)
    made = PackedLinear(200, 130, codec, torch.randn(130, generator=generator).to(dtype))
    made.weight = nn.Parameter(codec.encode(torch.randn(130, 200, generator=generator)), requires_grad=False)
    return made


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_multiplies_with_the_weight_that_was_packed(
    codec: WeightCodec, dtype: torch.dtype, instructions: str
) -> None:
    made, tokens = layer(codec, dtype), torch.randn(2, 9, 200).to(dtype)
    found = made(tokens)
    weight = codec.decode(made.weight, 130, 200).double()
    exact = nn.functional.linear(rounded_tokens(tokens, codec).double(), weight, made.bias.double())
    assert found.shape == (2, 9, 130) and found.dtype is dtype
    assert (found.double() - exact).std() < 2 * torch.finfo(dtype).eps * exact.std() + 1e-5


@pytest.mark.parametrize(
    ("codec", "steps"), [(Int8Codec(), 1), (Int8Codec(outliers=2.0), 1), (Int4Codec(8), 25)], ids=str
)
def test_tokens_are_off_by_half_a_step_at_most(codec: WeightCodec, steps: int) -> None:
    tokens = torch.randn(9, 200, generator=torch.Generator().manual_seed(2))
    found = rounded_tokens(tokens, codec)
    groups, rounded = tokens.view(9, steps, -1), found.view(9, steps, -1)
    kept = groups.abs() >= 2 if codec == Int8Codec(outliers=2.0) else torch.zeros_like(groups, dtype=torch.bool)
    assert torch.equal(groups[kept], rounded[kept])
    largest = torch.where(kept, 0, groups).abs().amax(-1, keepdim=True)
    assert ((rounded - groups).abs() <= largest / 127 * 0.5001).all()
    assert not torch.equal(found, tokens)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
def test_a_product_with_a_packed_weight_is_that_of_a_layer(codec: WeightCodec, instructions: str) -> None:
    weight, tokens = torch.randn(130, 200), torch.randn(3, 200)
    assert torch.allclose(product_with(weight, codec)(tokens), tokens @ weight.T, atol=6)
    assert torch.equal(product_with(weight, None)(tokens), nn.functional.linear(tokens, weight))


def test_it_says_what_it_is() -> None:
    assert repr(layer(Int4Codec(), torch.float32)) == "PackedLinear(200 -> 130, int4-64)"
