"""Products with weights in 4 bits: exact sums of each group, the same on every processor."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from headrace.compression.packed_linear import rounded_tokens
from headrace.compression.weight_codecs import Int4Codec
from headrace.kernels.library import load, usable
from headrace.kernels.packed_linear import PackedWeight
from headrace.kernels.packed_linear import int4_linear as int4_linears

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

SHAPES = [(1, 1, 1), (1, 64, 64), (2, 100, 37), (5, 33, 130), (7, 96, 64), (13, 257, 65), (40, 515, 200)]
"""(T, K, N): whole registers, tiles and parts, and what is left beside them."""


def int4_linear(
    library: ctypes.CDLL, tokens: Tensor, packed: Tensor, bias: Tensor | None, num_outputs: int, group_size: int
) -> Tensor:
    (output,) = int4_linears(library, tokens, [PackedWeight(packed, bias, num_outputs)], group_size)
    return output


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("group_size", [8, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_are_those_of_the_codes(
    name: str, shape: tuple[int, int, int], group_size: int, dtype: torch.dtype
) -> None:
    num_tokens, num_inputs, num_outputs = shape
    codec, bias = Int4Codec(group_size), drawn(num_outputs, dtype=dtype)
    tokens, packed = drawn(num_tokens, num_inputs, dtype=dtype), codec.encode(drawn(num_outputs, num_inputs))
    found = int4_linear(load(name), tokens, packed, bias, num_outputs, group_size)
    assert found.dtype is dtype
    weight = codec.decode(packed, num_outputs, num_inputs)
    exact = torch.nn.functional.linear(rounded_tokens(tokens, codec).double(), weight.double(), bias.double())
    assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps + 1e-6, atol=1e-6 * num_inputs)


def test_every_instruction_set_gives_the_same_bits() -> None:
    packed = Int4Codec().encode(drawn(130, 320))
    for tokens in (drawn(11, 320), drawn(3, 320)):
        found = [int4_linear(load(name), tokens, packed, None, 130, 64) for name in usable()]
        assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("num_inputs", [704, 700])
def test_a_token_is_bitwise_the_same_alone_and_among_others(name: str, num_inputs: int) -> None:
    tokens, packed = drawn(50, num_inputs), Int4Codec().encode(drawn(150, num_inputs))
    together = int4_linear(load(name), tokens, packed, None, 150, 64)
    for first, count in ((0, 1), (1, 2), (3, 3), (6, 4), (10, 5), (8, 17), (25, 25)):
        part = int4_linear(load(name), tokens[first : first + count].contiguous(), packed, None, 150, 64)
        assert torch.equal(part, together[first : first + count])


@pytest.mark.parametrize("name", usable())
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    tokens, packed = drawn(9, 320), Int4Codec().encode(drawn(500, 320))
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            alone = int4_linear(load(name), tokens[:2], packed, None, 500, 64)
            found.append(torch.cat([int4_linear(load(name), tokens, packed, None, 500, 64), alone]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", usable())
def test_the_largest_codes_do_not_overflow(name: str) -> None:
    """All codes are 15 above their zero, or as far below it, and all of a token's numbers are 127 or -127."""
    signs = torch.ones(8, 4096)
    signs[1::2] = -1
    packed = Int4Codec(128).encode(signs.repeat(9, 1))
    found = int4_linear(load(name), signs, packed, None, 72, 128)
    assert torch.allclose(found, 4096 * (signs[:, :1] * signs[:, 0]).repeat(1, 9), rtol=0.01)


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 36])
def test_a_number_that_is_none_spoils_its_own_token_alone(name: str, fault: float, place: int) -> None:
    tokens, packed = drawn(4, 96), Int4Codec(32).encode(drawn(70, 96))
    tokens[2, place] = fault
    found = int4_linear(load(name), tokens, packed, None, 70, 32)
    assert found[2].isnan().all()
    assert found[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("name", usable())
def test_a_token_of_zeros_gives_the_bias(name: str) -> None:
    packed, bias = Int4Codec().encode(drawn(70, 64)), drawn(70)
    assert torch.equal(int4_linear(load(name), torch.zeros(2, 64), packed, bias, 70, 64), bias.expand(2, -1))


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_several_weights_give_what_each_gives_alone(name: str, num_tokens: int) -> None:
    tokens = 3 * drawn(num_tokens, 320)
    weights = [
        PackedWeight(Int4Codec().encode(drawn(count, 320)), drawn(count) if count > 64 else None, count)
        for count in (130, 7, 64, 90)
    ]
    alone = [int4_linear(load(name), tokens, *weight, 64) for weight in weights]
    assert all(map(torch.equal, int4_linears(load(name), tokens, weights, 64), alone))


@pytest.mark.parametrize("name", usable())
def test_of_many_tokens_and_outputs_each_token_is_bitwise_the_same_alone(name: str) -> None:
    """So many that threads take several pieces of the outputs together."""
    tokens = drawn(600, 320)
    packed = Int4Codec().encode(drawn(700, 320))
    together = int4_linear(load(name), tokens, packed, None, 700, 64)
    for first, count in ((0, 1), (95, 2), (300, 97), (599, 1)):
        part = tokens[first : first + count].contiguous()
        assert torch.equal(int4_linear(load(name), part, packed, None, 700, 64), together[first : first + count])


@pytest.mark.parametrize("name", usable())
def test_groups_that_are_shorter_than_registers_leave_other_tokens_alone(name: str) -> None:
    tokens, packed = drawn(64, 64), Int4Codec(8).encode(drawn(70, 64))
    found = int4_linear(load(name), tokens, packed, None, 70, 8)
    for t in range(64):
        assert torch.equal(int4_linear(load(name), tokens[t : t + 1], packed, None, 70, 8)[0], found[t])
