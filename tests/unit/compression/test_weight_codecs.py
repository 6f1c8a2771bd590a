"""Weights come back within what their bits allow: against codes that numpy computes by the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.compression.weight_codecs import (
    MAX_INT8_INPUTS,
    Int4Codec,
    Int8Codec,
    WeightCodec,
    weight_codec,
)

CODECS: list[WeightCodec] = [Int8Codec(), Int4Codec(32), Int4Codec(64), Int4Codec(128)]
SHAPES = st.tuples(st.integers(1, 140), st.integers(1, 300))


def drawn(num_outputs: int, num_inputs: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(num_outputs, 1, generator=generator) * 3)
    return torch.randn(num_outputs, num_inputs, generator=generator) * sizes


@given(shape=SHAPES, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_8_bits_err_by_half_a_step_of_each_output(shape: tuple[int, int], seed: int) -> None:
    codec, weight = Int8Codec(), drawn(*shape, seed)
    packed = codec.encode(weight)
    assert packed.shape == codec.packed_shape(*shape) and packed.dtype is torch.uint8
    step = np.abs(weight.numpy()).max(axis=1, keepdims=True) / 127
    errors = np.abs(codec.decode(packed, *shape).numpy() - weight.numpy())
    assert (errors <= step * 0.503).all()  # scales have eight bits


@given(shape=SHAPES, seed=st.integers(0, 1000), group_size=st.sampled_from([32, 64, 128]))
@settings(deadline=None, max_examples=40)
def test_4_bits_err_by_a_step_of_each_group_and_mostly_by_half(
    shape: tuple[int, int], seed: int, group_size: int
) -> None:
    codec, weight = Int4Codec(group_size), drawn(*shape, seed)
    packed = codec.encode(weight)
    assert packed.shape == codec.packed_shape(*shape)
    found = codec.decode(packed, *shape).numpy()
    codes = codec.codes(weight)[0].numpy()
    for group in range(codes.shape[1]):
        columns = slice(group * group_size, min(shape[1], (group + 1) * group_size))
        numbers, used = weight[:, columns].numpy(), codes[:, group, : columns.stop - columns.start]
        step = (np.maximum(numbers.max(axis=1), 0) - np.minimum(numbers.min(axis=1), 0))[:, None] / 15
        errors = np.abs(found[:, columns] - numbers)
        assert (errors <= step * 1.06).all()  # at the ends of the range the zero's own rounding is added
        assert (errors <= step * 0.503)[(used > 0) & (used < 15)].all()


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_zeros_come_back_as_zeros(codec: WeightCodec) -> None:
    weight = torch.zeros(70, 130)
    assert torch.equal(codec.decode(codec.encode(weight), 70, 130), weight)


def test_4_bit_codes_come_back_as_they_were_packed() -> None:
    codec, generator = Int4Codec(32), torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (128, 3, 32), dtype=torch.uint8, generator=generator)
    scales = torch.rand(128, 3, generator=generator)
    zeros = torch.randint(0, 16, (128, 3), dtype=torch.uint8, generator=generator)
    found = codec.unpack(codec.pack(codes, scales, zeros))
    assert all(torch.equal(one, other) for one, other in zip(found, (codes, scales, zeros), strict=True))


def test_parts_can_be_packed_one_after_another() -> None:
    weight = drawn(200, 96, seed=3)
    for codec in CODECS:
        parts = [codec.encode(weight[first : first + 128]) for first in (0, 128)]
        assert torch.equal(torch.cat(parts), codec.encode(weight))


def test_sizes_are_what_the_layout_says() -> None:
    assert np.prod(Int8Codec().packed_shape(4096, 4096)) == 4096 * (4096 + 8)
    assert np.prod(Int4Codec(64).packed_shape(4096, 4096)) == 4096 * 4096 * 37 // 64


def test_what_would_not_become_smaller_is_not_packed() -> None:
    assert all(codec.fits(4096, 4096) for codec in CODECS)
    assert not any(codec.fits(8, 4096) for codec in CODECS)
    assert not Int8Codec().fits(64, MAX_INT8_INPUTS + 1)
    assert not Int4Codec(64).fits(4096, 96)  # the last group would not be whole, which checkpoints cannot say


def test_names_stand_for_codecs() -> None:
    assert (weight_codec("int8"), weight_codec("int4"), weight_codec("none")) == (Int8Codec(), Int4Codec(64), None)
