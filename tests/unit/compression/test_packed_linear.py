"""A packed layer computes what its unpacked weight would, with the library and without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headrace.compression.packed_linear import PackedLinear, product_with
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
    exact = nn.functional.linear(tokens.double(), codec.decode(made.weight, 130, 200).double(), made.bias.double())
    assert found.shape == (2, 9, 130) and found.dtype is dtype
    # In 8 bits each number of a token is off by half a step, some 1 % of a typical one, and the errors do not add up.
    rounded = 0.03 if isinstance(codec, Int8Codec) else 0.0
    assert (found.double() - exact).std() < (rounded + 2 * torch.finfo(dtype).eps) * exact.std() + 1e-5


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
def test_a_product_with_a_packed_weight_is_that_of_a_layer(codec: WeightCodec, instructions: str) -> None:
    weight, tokens = torch.randn(130, 200), torch.randn(3, 200)
    assert torch.allclose(product_with(weight, codec)(tokens), tokens @ weight.T, atol=6)
    assert torch.equal(product_with(weight, None)(tokens), nn.functional.linear(tokens, weight))


def test_it_says_what_it_is() -> None:
    assert repr(layer(Int4Codec(), torch.float32)) == "PackedLinear(200 -> 130, int4-64)"
