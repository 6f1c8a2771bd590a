"""Products of the library: what they are, that they are rounded once, and that no token depends on those beside it."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from headrace.kernels.interleaving import can_be_interleaved, interleave, interleaved_rows
from headrace.kernels.library import load, usable
from headrace.kernels.linear import linear as linears

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

SHAPES = [(1, 1, 1), (1, 64, 64), (2, 100, 37), (5, 33, 130), (7, 96, 64), (13, 257, 65), (40, 515, 200)]
"""(T, K, N): whole registers, tiles and panels, and what is left beside them."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def linear(library: ctypes.CDLL, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (output,) = linears(library, tokens, [(weight, bias)])
    return output


def assert_rounded_once(found: Tensor, exact: Tensor, num_inputs: int, dtype: torch.dtype) -> None:
    assert found.dtype is dtype
    assert torch.allclose(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6 * num_inputs)
    if dtype is not torch.float32 and exact.numel() > 500:
        # Sums in float32 may fall to the other side of a border between two numbers of the dtype: rarely.
        assert (found == exact.to(dtype)).float().mean() > 0.98


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_with_plain_weights_are_rounded_once(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, with_bias: bool
) -> None:
    num_tokens, num_inputs, num_outputs = shape
    tokens, weight = drawn(num_tokens, num_inputs, dtype=dtype), drawn(num_outputs, num_inputs, dtype=dtype)
    bias = drawn(num_outputs, dtype=dtype) if with_bias else None
    found = linear(load(name), tokens, weight, bias)
    exact = torch.nn.functional.linear(tokens.double(), weight.double(), None if bias is None else bias.double())
    assert_rounded_once(found, exact, num_inputs, dtype)


@pytest.mark.parametrize("name", usable())
def test_rows_of_a_larger_matrix_are_multiplied_where_they_lie(name: str) -> None:
    tokens, matrix = drawn(3, 40), drawn(90, 70, dtype=torch.bfloat16)
    found = linear(load(name), tokens, matrix[10:77, 5:45], None)
    assert torch.equal(found, linear(load(name), tokens, matrix[10:77, 5:45].contiguous(), None))


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_is_bitwise_the_same_alone_and_among_others(name: str, dtype: torch.dtype) -> None:
    tokens, weight = drawn(50, 700), drawn(150, 700, dtype=dtype)
    together = linear(load(name), tokens, weight, None)
    for first, count in ((0, 1), (1, 2), (3, 5), (8, 17), (25, 25)):
        part = linear(load(name), tokens[first : first + count].contiguous(), weight, None)
        assert torch.equal(part, together[first : first + count])


@pytest.mark.parametrize("name", usable())
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    tokens, weight = drawn(9, 300), drawn(500, 300, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    found = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            found.append(linear(load(name), tokens, weight, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", usable())
def test_several_weights_give_what_each_gives_alone(name: str) -> None:
    tokens = drawn(9, 300)
    weights = [
        (drawn(count, 300, dtype=torch.bfloat16), drawn(count) if count > 64 else None) for count in (130, 7, 64, 90)
    ]
    alone = [linear(load(name), tokens, *weight) for weight in weights]
    assert all(map(torch.equal, linears(load(name), tokens, weights), alone))


@pytest.mark.parametrize("name", usable())
def test_of_many_tokens_and_outputs_each_token_is_bitwise_the_same_alone(name: str) -> None:
    """So many that threads take several pieces of the outputs together."""
    tokens = drawn(600, 320)
    weight = drawn(700, 320, dtype=torch.bfloat16)
    together = linear(load(name), tokens, weight, None)
    for first, count in ((0, 1), (95, 2), (300, 97), (599, 1)):
        part = tokens[first : first + count].contiguous()
        assert torch.equal(linear(load(name), part, weight, None), together[first : first + count])


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("num_tokens", [1, 6, 7, 33, 100])
@pytest.mark.parametrize("num_outputs", [5, 64, 90, 150])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_that_lie_column_by_column_give_the_same_bits(
    name: str, num_tokens: int, num_outputs: int, dtype: torch.dtype
) -> None:
    tokens, matrix = drawn(num_tokens, 202, dtype=dtype), drawn(202, 200, dtype=dtype)
    columns = matrix[:, 7 : 7 + num_outputs].t()
    assert columns.stride(0) == 1
    found = linear(load(name), tokens, columns, None)
    assert torch.equal(found, linear(load(name), tokens, columns.contiguous(), None))


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("num_tokens", [1, 6, 7, 20, 33, 70, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interleaved_weights_give_the_same_bits(name: str, num_tokens: int, dtype: torch.dtype) -> None:
    tokens, weight, bias = drawn(num_tokens, 202, dtype=dtype), drawn(192, 202, dtype=dtype), drawn(192, dtype=dtype)
    interleaved = interleave(weight.clone())
    plain = linears(load(name), tokens, [(weight, bias), (weight[64:128], None)])
    found = linears(load(name), tokens, [(interleaved, bias), (interleaved[1:2], None)], are_interleaved=True)
    assert all(torch.equal(ours, expected) for ours, expected in zip(found, plain, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_are_interleaved_where_they_lie_and_rows_are_found_again(dtype: torch.dtype) -> None:
    weight = drawn(128, 10, dtype=dtype)
    memory = weight.clone()
    interleaved = interleave(memory)
    assert interleaved.data_ptr() == memory.data_ptr() and interleaved.shape[:1] == (2,)
    wanted = torch.tensor([0, 3, 63, 64, 127])
    assert torch.equal(interleaved_rows(interleaved, wanted), weight[wanted])


def test_only_whole_registers_are_interleaved() -> None:
    shapes = {(64, 3): False, (64, 4): True, (63, 4): False, (192, 2): True}
    assert {shape: can_be_interleaved(drawn(*shape, dtype=torch.float16)) for shape in shapes} == shapes
    assert can_be_interleaved(drawn(64, 3)) and not can_be_interleaved(drawn(64, 4, dtype=torch.float64))


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_inputs_than_a_panel_has_give_the_same_bits_however_weights_lie(name: str, dtype: torch.dtype) -> None:
    tokens, weight = drawn(100, 2200, dtype=dtype), drawn(64, 2200, dtype=dtype)
    together = linear(load(name), tokens, weight, None)
    columns = weight.t().contiguous().t()
    interleaved = interleave(weight.clone())
    assert torch.equal(linear(load(name), tokens[7:9], weight, None), together[7:9])
    assert torch.equal(linear(load(name), tokens, columns, None), together)
    for part in (tokens, tokens[:1], tokens[:11]):
        (found,) = linears(load(name), part, [(interleaved, None)], are_interleaved=True)
        assert torch.equal(found, together[: len(part)])
