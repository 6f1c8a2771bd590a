"""Products in 8 bits: exact sums, the same on every processor, and each token scaled by itself."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from headrace.compression.packed_linear import rounded_tokens
from headrace.compression.weight_codecs import Int8Codec
from headrace.kernels.library import load, usable
from headrace.kernels.packed_linear import PackedWeight
from headrace.kernels.packed_linear import int8_linear as int8_linears

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

SHAPES = [(1, 1, 1), (1, 64, 64), (2, 100, 37), (5, 33, 130), (7, 96, 64), (13, 257, 65), (40, 515, 200)]
CODEC = Int8Codec()


def int8_linear(
    library: ctypes.CDLL,
    tokens: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    num_outputs: int,
    outliers: float | None = None,
) -> Tensor:
    (output,) = int8_linears(library, tokens, [PackedWeight(packed, bias, num_outputs)], outliers)
    return output


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def oracle(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The definition, in whole numbers: tokens by their largest number over 127, codes times codes, scales last."""
    wide = tokens.float()
    largest = wide.abs().amax(dim=1, keepdim=True)
    token_codes = (wide * torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0)).round()
    codes, scales = CODEC.codes(weight)
    found = (token_codes.double() @ codes.double().T) * scales.double() * (largest.double() / 127)
    return found if bias is None else found + bias.double()


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_are_those_of_the_codes(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, with_bias: bool
) -> None:
    num_tokens, num_inputs, num_outputs = shape
    tokens, weight = drawn(num_tokens, num_inputs, dtype=dtype), drawn(num_outputs, num_inputs)
    bias = drawn(num_outputs, dtype=dtype) if with_bias else None
    found = int8_linear(load(name), tokens, CODEC.encode(weight), bias, num_outputs)
    assert found.dtype is dtype
    exact = oracle(tokens, weight, bias)
    assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps + 1e-6, atol=1e-5)


def test_every_instruction_set_gives_the_same_bits() -> None:
    tokens, packed = drawn(11, 300), CODEC.encode(drawn(130, 300))
    found = [int8_linear(load(name), tokens, packed, None, 130) for name in usable()]
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", usable())
def test_a_token_is_bitwise_the_same_alone_and_among_others(name: str) -> None:
    tokens, packed = drawn(30, 400), CODEC.encode(drawn(100, 400))
    together = int8_linear(load(name), tokens, packed, None, 100)
    for first, count in ((0, 1), (1, 2), (3, 5), (8, 17)):
        part = int8_linear(load(name), tokens[first : first + count].contiguous(), packed, None, 100)
        assert torch.equal(part, together[first : first + count])


@pytest.mark.parametrize("name", usable())
def test_the_largest_codes_of_both_signs_do_not_overflow(name: str) -> None:
    width = 20_000
    signs = torch.ones(3, width)
    signs[1] = -1
    signs[2, ::2] = -1
    weight = signs.repeat(22, 1)
    found = int8_linear(load(name), signs, CODEC.encode(weight), None, 66)
    assert torch.allclose(found.double(), oracle(signs, weight, None), rtol=1e-6)
    assert found.abs().max() > 0.99 * width


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 36])
def test_a_number_that_is_none_spoils_its_own_token_alone(name: str, fault: float, place: int) -> None:
    tokens, packed = drawn(4, 37), CODEC.encode(drawn(70, 37))
    tokens[2, place] = fault
    found = int8_linear(load(name), tokens, packed, None, 70)
    assert found[2].isnan().all()
    assert found[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outliers_are_multiplied_as_they_are(name: str, dtype: torch.dtype) -> None:
    tokens, packed = drawn(9, 133, dtype=dtype), CODEC.encode(drawn(70, 133))
    tokens[1, 0], tokens[1, 132], tokens[4, 67], tokens[7, 2] = 60.5, -7.25, 1000.0, 6.0
    found = int8_linear(load(name), tokens.float(), packed, None, 70, outliers=6.0)
    weight = CODEC.decode(packed, 70, 133)
    exact = torch.nn.functional.linear(rounded_tokens(tokens, Int8Codec(6.0)).double(), weight.double())
    assert torch.allclose(found.double(), exact, rtol=1e-5, atol=1e-3)
    full = torch.nn.functional.linear(tokens.double(), weight.double())
    plain = int8_linear(load(name), tokens.float(), packed, None, 70)
    assert (found.double() - full)[4].norm() < (plain.double() - full)[4].norm() / 50


@pytest.mark.parametrize("name", usable())
def test_a_token_with_outliers_is_bitwise_the_same_alone_and_among_others(name: str) -> None:
    tokens, packed = 3 * drawn(30, 400), CODEC.encode(drawn(100, 400))
    together = int8_linear(load(name), tokens, packed, None, 100, outliers=6.0)
    for t in range(30):
        assert torch.equal(int8_linear(load(name), tokens[t : t + 1], packed, None, 100, outliers=6.0)[0], together[t])


@pytest.mark.parametrize("name", usable())
def test_a_token_of_zeros_gives_the_bias(name: str) -> None:
    packed, bias = CODEC.encode(drawn(70, 37)), drawn(70)
    assert torch.equal(int8_linear(load(name), torch.zeros(2, 37), packed, bias, 70), bias.expand(2, -1))


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_several_weights_give_what_each_gives_alone(name: str, num_tokens: int) -> None:
    tokens = 3 * drawn(num_tokens, 320)
    weights = [
        PackedWeight(CODEC.encode(drawn(count, 320)), drawn(count) if count > 64 else None, count)
        for count in (130, 7, 64, 90)
    ]
    alone = [int8_linear(load(name), tokens, *weight, 6.0) for weight in weights]
    assert all(map(torch.equal, int8_linears(load(name), tokens, weights, 6.0), alone))


@pytest.mark.parametrize("name", usable())
def test_of_many_tokens_and_outputs_each_token_is_bitwise_the_same_alone(name: str) -> None:
    """So many that threads take several pieces of the outputs together."""
    tokens = drawn(600, 320)
    packed = CODEC.encode(drawn(700, 320))
    together = int8_linear(load(name), tokens, packed, None, 700)
    for first, count in ((0, 1), (95, 2), (300, 97), (599, 1)):
        part = tokens[first : first + count].contiguous()
        assert torch.equal(int8_linear(load(name), part, packed, None, 700), together[first : first + count])
