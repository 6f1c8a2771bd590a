"""Products with packed weights: exact sums, the same on every processor, and each token rounded by itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from headrace.compression.packed_linear import rounded_tokens
from headrace.compression.weight_codecs import Int4Codec, Int8Codec
from headrace.kernels.library import load, usable
from headrace.kernels.packed_linear import PackedWeight, int4_linear, int8_linear

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

Codec = Int8Codec | Int4Codec
CODECS = {"int8": Int8Codec(), "int8-outliers": Int8Codec(2.0), "int4": Int4Codec()}
GROUPS = {f"int4 by {size}": Int4Codec(size) for size in (8, 32, 128)}
SHAPES = [(1, 1, 1), (1, 64, 64), (2, 100, 37), (5, 33, 130), (7, 96, 64), (13, 257, 65), (40, 515, 200)]
"""(T, K, N): whole registers, tiles and parts, and what is left beside them."""

every_library = pytest.mark.parametrize("name", usable())
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def products(library: ctypes.CDLL, tokens: Tensor, weights: Sequence[PackedWeight], codec: Codec) -> list[Tensor]:
    if isinstance(codec, Int4Codec):
        return int4_linear(library, tokens, weights, codec.group_size)
    return int8_linear(library, tokens, weights, codec.outliers)


def product(name: str, tokens: Tensor, weight: Tensor, codec: Codec, bias: Tensor | None = None) -> Tensor:
    (output,) = products(load(name), tokens, [PackedWeight(codec.encode(weight), bias, len(weight))], codec)
    return output


@every_library
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("codec", [*CODECS.values(), *GROUPS.values()], ids=[*CODECS, *GROUPS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_are_those_of_the_codes(
    name: str, shape: tuple[int, int, int], codec: Codec, dtype: torch.dtype
) -> None:
    num_tokens, num_inputs, num_outputs = shape
    tokens, weight = drawn(num_tokens, num_inputs, dtype=dtype), drawn(num_outputs, num_inputs)
    seen = codec.decode(codec.encode(weight), num_outputs, num_inputs).double()
    for bias in (None, drawn(num_outputs, dtype=dtype)):
        found = product(name, tokens, weight, codec, bias)
        assert found.dtype is dtype
        exact = torch.nn.functional.linear(
            rounded_tokens(tokens, codec).double(), seen, None if bias is None else bias.double()
        )
        atol = 1e-6 * num_inputs if isinstance(codec, Int4Codec) else 1e-5
        assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps + 1e-6, atol=atol)


@every_library
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_int8_products_are_those_of_whole_numbers(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, with_bias: bool
) -> None:
    """The definition: tokens by their largest number over 127, codes times codes, scales last."""
    num_tokens, num_inputs, num_outputs = shape
    tokens, weight = drawn(num_tokens, num_inputs, dtype=dtype), drawn(num_outputs, num_inputs)
    bias = drawn(num_outputs, dtype=dtype) if with_bias else None
    largest = tokens.float().abs().amax(dim=1, keepdim=True)
    codes, scales = Int8Codec().codes(weight)
    factors = torch.full_like(largest, 127) / largest  # one rounding; torch's 127 / largest has two
    sums = (tokens.float() * factors).round().double() @ codes.double().T
    exact = sums * scales.double() * (largest.double() / 127)
    found = product(name, tokens, weight, Int8Codec(), bias).double()
    expected = exact if bias is None else exact + bias.double()
    assert torch.allclose(found, expected, rtol=torch.finfo(dtype).eps + 1e-6, atol=1e-5)


@every_codec
def test_every_instruction_set_gives_the_same_bits(codec: Codec) -> None:
    for num_tokens, num_inputs in ((11, 320), (3, 320), (11, 300)):
        tokens, weight = drawn(num_tokens, num_inputs), drawn(130, num_inputs)
        found = [product(name, tokens, weight, codec) for name in usable()]
        assert all(torch.equal(found[0], other) for other in found[1:])


@every_library
@every_codec
@pytest.mark.parametrize(("num_tokens", "num_inputs", "num_outputs"), [(50, 704, 150), (50, 700, 150), (600, 320, 700)])
def test_a_token_is_bitwise_the_same_alone_and_among_others(
    name: str, codec: Codec, num_tokens: int, num_inputs: int, num_outputs: int
) -> None:
    """With 600 tokens, threads take several pieces of the outputs together."""
    tokens, weight = drawn(num_tokens, num_inputs), drawn(num_outputs, num_inputs)
    together = product(name, tokens, weight, codec)
    for first, count in ((0, 1), (1, 2), (3, 3), (6, 4), (10, 5), (8, 17), (25, 25), (num_tokens - 1, 1)):
        part = product(name, tokens[first : first + count].contiguous(), weight, codec)
        assert torch.equal(part, together[first : first + count])


@every_library
def test_in_groups_shorter_than_registers_a_token_is_bitwise_the_same_alone(name: str) -> None:
    tokens, weight, codec = drawn(64, 64), drawn(70, 64), Int4Codec(8)
    together = product(name, tokens, weight, codec)
    for t in range(64):
        assert torch.equal(product(name, tokens[t : t + 1], weight, codec)[0], together[t])


@every_library
@every_codec
def test_any_number_of_threads_gives_the_same_bits(name: str, codec: Codec, num_threads: Callable[[int], None]) -> None:
    tokens, weight = drawn(9, 320), drawn(500, 320)
    found = []
    for number in (1, 2, 3):
        num_threads(number)
        found.append(torch.cat([product(name, part, weight, codec) for part in (tokens, tokens[:2])]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@every_library
def test_the_largest_int8_codes_of_both_signs_do_not_overflow(name: str) -> None:
    width, codec = 20_000, Int8Codec()
    signs = torch.ones(3, width)
    signs[1] = -1
    signs[2, ::2] = -1
    weight = signs.repeat(22, 1)
    found = product(name, signs, weight, codec)
    seen = codec.decode(codec.encode(weight), 66, width)
    assert torch.allclose(found.double(), signs.double() @ seen.double().T, rtol=1e-6)
    assert found.abs().max() > 0.99 * width


@every_library
def test_the_largest_int4_codes_do_not_overflow(name: str) -> None:
    """All codes are 15 above their zero, or as far below it, and all of a token's numbers are 127 or -127."""
    signs = torch.ones(8, 4096)
    signs[1::2] = -1
    found = product(name, signs, signs.repeat(9, 1), Int4Codec(128))
    assert torch.allclose(found, 4096 * (signs[:, :1] * signs[:, 0]).repeat(1, 9), rtol=0.01)


@every_library
@pytest.mark.parametrize(("codec", "num_inputs"), [(Int8Codec(), 37), (Int4Codec(32), 96)], ids=str)
@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 36])
def test_a_number_that_is_none_spoils_its_own_token_alone(
    name: str, codec: Codec, num_inputs: int, fault: float, place: int
) -> None:
    tokens = drawn(4, num_inputs)
    tokens[2, place] = fault
    found = product(name, tokens, drawn(70, num_inputs), codec)
    assert found[2].isnan().all()
    assert found[[0, 1, 3]].isfinite().all()


@every_library
@every_codec
def test_a_token_of_zeros_gives_the_bias(name: str, codec: Codec) -> None:
    bias = drawn(70)
    assert torch.equal(product(name, torch.zeros(2, 37), drawn(70, 37), codec, bias), bias.expand(2, -1))


@every_library
@every_codec
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_several_weights_give_what_each_gives_alone(name: str, codec: Codec, num_tokens: int) -> None:
    tokens = 3 * drawn(num_tokens, 320)
    weights = [
        PackedWeight(codec.encode(drawn(count, 320)), drawn(count) if count > 64 else None, count)
        for count in (130, 7, 64, 90)
    ]
    alone = [products(load(name), tokens, [weight], codec)[0] for weight in weights]
    assert all(map(torch.equal, products(load(name), tokens, weights, codec), alone))


@every_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outliers_are_multiplied_as_they_are(name: str, dtype: torch.dtype) -> None:
    tokens, weight, codec = drawn(9, 133, dtype=dtype), drawn(70, 133), Int8Codec(6.0)
    tokens[1, 0], tokens[1, 132], tokens[4, 67], tokens[7, 2] = 60.5, -7.25, 1000.0, 6.0
    seen = codec.decode(codec.encode(weight), 70, 133).double()
    found, plain = (product(name, tokens.float(), weight, each).double() for each in (codec, Int8Codec()))
    exact = torch.nn.functional.linear(rounded_tokens(tokens, codec).double(), seen)
    assert torch.allclose(found, exact, rtol=1e-5, atol=1e-3)
    full = torch.nn.functional.linear(tokens.double(), seen)
    assert (found - full)[4].norm() < (plain - full)[4].norm() / 50
