"""Codes are those of a numpy oracle, byte for byte; what is not finite spoils its own group."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from headrace.compression.kv_codec import GROUP_NUMBERS, INT4, INT8, KV_CODECS, KVCodec
from headrace.compression.kv_codes import decode, encode

CODECS = list(KV_CODECS.values())
WIDTHS = [1, 2, 16, 37, 40, 63, 64, 65, 80, 96, 128, 130, 576]
Floats = npt.NDArray[np.float32]


def by_name(codec: KVCodec) -> str:
    return codec.name


def numbers_like_keys(*shape: int, seed: int = 0) -> Tensor:
    """Noise around an offset of each column, some of which are large, as the keys of trained models have them."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(shape[-1], generator=generator) * 4 ** torch.randn(shape[-1], generator=generator)
    return torch.randn(shape, generator=generator) + offsets


def bfloat16_bytes(number: np.float32, *, up: bool) -> bytes:
    """The two bytes of the nearest bfloat16 that is not below, or not above."""
    bits = int(number.view(np.uint32))
    is_away_from_zero = (number < 0) != up
    if is_away_from_zero and bits & 0xFFFF:
        bits += 0x10000
    return (bits >> 16).to_bytes(2, "little")


def as_float(two: bytes) -> np.float32:
    return np.frombuffer(b"\0\0" + two, dtype=np.float32)[0]


def oracle(numbers: Floats, codec: KVCodec) -> bytes:
    """One record, number by number."""
    codes: list[int] = []
    ends = b""
    for start in range(0, len(numbers), GROUP_NUMBERS):
        group = numbers[start : start + GROUP_NUMBERS]
        low = bfloat16_bytes(group.min(), up=False)
        span = np.float32(group.max() - as_float(low))
        step = max(np.float32(span / np.float32(codec.largest_code)), np.finfo(np.float32).tiny)
        high = bfloat16_bytes(step, up=True)
        ends += high + low
        for number in group:
            quotient = np.float32(np.float32(number - as_float(low)) / as_float(high))
            codes.append(int(min(codec.largest_code, np.round(quotient))))
    if codec.bits == 4:
        codes += [0] * (len(codes) % 2)
        codes = [low + 16 * high for low, high in zip(codes[::2], codes[1::2], strict=True)]
    return bytes(codes) + ends


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_records_are_those_of_the_oracle(codec: KVCodec, width: int) -> None:
    numbers = numbers_like_keys(20, width)
    numbers[0] = 3.0
    records = encode(numbers, codec)
    assert records.shape == (20, codec.num_bytes(width))
    for row, record in zip(numbers.numpy(), records, strict=True):
        assert bytes(record.tolist()) == oracle(row, codec)


def test_codes_lie_before_scales_and_minima_and_two_of_4_bits_share_a_byte() -> None:
    assert encode(torch.tensor([-1.0, 254.0, 3.0]), INT8).tolist() == [0, 255, 4, 0x80, 0x3F, 0x80, 0xBF]
    sixteen = encode(torch.arange(16.0), INT4).tolist()
    assert sixteen == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0x80, 0x3F, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_a_number_comes_back_within_half_a_scale(codec: KVCodec, width: int, dtype: torch.dtype) -> None:
    numbers = numbers_like_keys(50, width).to(dtype)
    records = encode(numbers, codec)
    errors = (decode(records, width, codec).double() - numbers.double()).abs()
    scales = scales_of(records, width, codec).repeat_interleave(GROUP_NUMBERS, dim=-1)[..., :width]
    rounding = 2**-22 * numbers.double().abs().amax(dim=-1, keepdim=True)
    assert (errors <= scales / 2 + rounding).all()


def scales_of(records: Tensor, width: int, codec: KVCodec) -> Tensor:
    ends = records[..., codec.code_bytes(width) :].contiguous().clone().view(torch.bfloat16).double()
    return ends[..., ::2]


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_numbers_that_are_equal_come_back_as_they_were(codec: KVCodec) -> None:
    for number in (0.0, -0.0, 1.5, -3.0, 2.0**100, -(2.0**-120)):
        assert decode(encode(torch.full((70,), number), codec), 70, codec).eq(number).all()


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_numbers_far_from_zero_and_close_together_keep_more_than_bfloat16_keeps(codec: KVCodec) -> None:
    numbers = 100 + torch.rand(1000, 64, generator=torch.Generator().manual_seed(1))
    errors = (decode(encode(numbers, codec), 64, codec) - numbers).abs()
    assert errors.max() < (numbers.bfloat16().float() - numbers).abs().max() / 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_what_is_not_finite_makes_its_own_group_nan_and_no_other(codec: KVCodec, bad: float) -> None:
    numbers = numbers_like_keys(3, 150)
    numbers[1, 70] = bad
    back = decode(encode(numbers, codec), 150, codec)
    assert back[1, 64:128].isnan().all()
    assert not back[[0, 2]].isnan().any() and not back[1, :64].isnan().any() and not back[1, 128:].isnan().any()


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_bytes_that_nobody_has_written_are_zeros(codec: KVCodec) -> None:
    assert decode(torch.zeros(5, codec.num_bytes(80), dtype=torch.uint8), 80, codec).eq(0).all()


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_a_record_depends_on_its_own_numbers_alone(codec: KVCodec) -> None:
    numbers = numbers_like_keys(7, 3, 96)
    together = encode(numbers, codec)
    assert together[4, 1].equal(encode(numbers[4, 1], codec))
    assert together[:, 2].equal(encode(numbers[:, 2], codec))
    assert encode(numbers.transpose(0, 1), codec).equal(together.transpose(0, 1))
