"""What lies between products: the numbers of torch's own operations, rounded in the same places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace.kernels.library import load, usable
from headrace.kernels.pointwise import Activation, NormForm, added, gated, rms_norm, rotated

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 15), (2, 5, 64), (7, 100), (40, 1030)]
ACTIVATIONS = {
    Activation.SILU: torch.nn.functional.silu,
    Activation.GELU_TANH: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def drawn(*shape: int, dtype: torch.dtype, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))).to(dtype)


def expected_norm(numbers: Tensor, weight: Tensor, epsilon: float, form: NormForm) -> Tensor:
    wide = numbers.float()
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    match form:
        case NormForm.WEIGHT_TIMES_ROUNDED:
            return weight * normalised.to(numbers.dtype)
        case NormForm.WEIGHT_TIMES_NUMBER:
            return (weight * normalised).to(numbers.dtype)
        case NormForm.ONE_PLUS_WEIGHT:
            return (normalised * (1.0 + weight.float())).to(numbers.dtype)


def assert_nearly_the_same(found: Tensor, expected: Tensor) -> None:
    """Equal but for the order of a sum and the last place of an exponential, which rounding rarely shows."""
    assert found.dtype is expected.dtype and found.shape == expected.shape
    assert torch.allclose(found.double(), expected.double(), rtol=2 * torch.finfo(found.dtype).eps + 2e-6, atol=1e-6)
    if found.dtype is not torch.float32:
        assert (found == expected).float().mean() > 0.99 or found.numel() < 1000


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", NormForm)
def test_a_norm_is_that_of_transformers(name: str, dtype: torch.dtype, shape: tuple[int, ...], form: NormForm) -> None:
    numbers, weight = drawn(*shape, dtype=dtype, spread=3.0), drawn(shape[-1], dtype=dtype)
    found = rms_norm(load(name), numbers, weight, 1e-5, form)
    assert_nearly_the_same(found, expected_norm(numbers, weight, 1e-5, form))


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("dims", [(0, 2, 1, 3), (2, 0, 1, 3), (1, 2, 0, 3), (0, 1, 3, 2)], ids=str)
def test_a_norm_of_what_was_turned_is_that_of_its_copy(name: str, dims: tuple[int, ...]) -> None:
    numbers = drawn(2, 5, 3, 40, dtype=torch.bfloat16).permute(dims)
    weight, form = drawn(numbers.shape[-1], dtype=torch.bfloat16), NormForm.ONE_PLUS_WEIGHT
    found = rms_norm(load(name), numbers, weight, 1e-6, form)
    assert found.is_contiguous()
    assert torch.equal(found, rms_norm(load(name), numbers.contiguous(), weight, 1e-6, form))
    alone = rms_norm(load(name), numbers[:1, 1:], weight, 1e-6, form)
    assert torch.equal(alone, found[:1, 1:])


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", Activation)
def test_a_gate_is_that_of_torch(name: str, dtype: torch.dtype, shape: tuple[int, ...], activation: Activation) -> None:
    spread = 4.0 if activation is Activation.SILU else 1.5  # 1 + tanh loses places in torch where tanh is near -1
    gate, up = drawn(*shape, dtype=dtype, spread=spread), drawn(*shape, dtype=dtype)
    assert_nearly_the_same(gated(load(name), gate, up, activation), ACTIVATIONS[activation](gate) * up)


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("activation", Activation)
def test_gates_of_any_size_give_what_they_tend_to(name: str, activation: Activation) -> None:
    ends = torch.tensor([-1e30, -1e4, -100.0, -90.0, -0.0, 0.0, 90.0, 1e4, 1e18, float("nan"), float("inf")])
    found = gated(load(name), ends, torch.ones_like(ends), activation)
    expected = ACTIVATIONS[activation](ends)
    assert torch.allclose(found, expected, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (64, 2048)], ids=str)
def test_a_sum_is_that_of_torch_to_the_last_bit(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    first, second = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, spread=100.0).flip(0)
    assert torch.equal(added(load(name), first, second), first + second)


@pytest.mark.parametrize("name", usable())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 3, 16), (9, 4, 40), (33, 8, 128)], ids=str)
def test_a_rotation_is_that_of_torch_to_the_last_bit(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    num_tokens, num_heads, width = shape
    numbers = drawn(num_heads, num_tokens, width + 3, dtype=dtype).transpose(0, 1)[..., :width]
    cosines, sines = drawn(num_tokens, width, dtype=dtype), drawn(num_tokens, width, dtype=dtype) * 0.5
    halves = torch.cat((-numbers[..., width // 2 :], numbers[..., : width // 2]), dim=-1)
    expected = numbers * cosines[:, None] + halves * sines[:, None]
    assert torch.equal(rotated(load(name), numbers, cosines, sines), expected)


@pytest.mark.parametrize("name", usable())
def test_a_row_is_bitwise_the_same_alone_and_among_others_on_any_number_of_threads(name: str) -> None:
    numbers, weight = drawn(70, 1030, dtype=torch.bfloat16), drawn(1030, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    found = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            norm = rms_norm(load(name), numbers, weight, 1e-6, NormForm.WEIGHT_TIMES_ROUNDED)
            found.append(gated(load(name), norm, numbers, Activation.SILU))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    alone = rms_norm(load(name), numbers[69:].contiguous(), weight, 1e-6, NormForm.WEIGHT_TIMES_ROUNDED)
    assert torch.equal(gated(load(name), alone, numbers[69:].contiguous(), Activation.SILU), found[0][69:])
