"""Whatever the numbers are, they come back within half a scale, and no scale is larger than it has to be."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headrace.compression.kv_codec import GROUP_NUMBERS, KV_CODECS, KVCodec
from headrace.compression.kv_codes import decode, encode

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32) | st.integers(-3, 3).map(float)
NUMBERS = st.lists(FLOATS, min_size=1, max_size=150).map(lambda numbers: torch.tensor(numbers, dtype=torch.float32))
CODECS = st.sampled_from(list(KV_CODECS.values()))
_LEAST = 2.0**-126


def groups_of(numbers: Tensor, codec: KVCodec) -> list[tuple[Tensor, Tensor, float, float]]:
    """Each group as it was and as it comes back, with its scale and its minimum."""
    record = encode(numbers, codec)
    back = decode(record, len(numbers), codec)
    ends = record[codec.code_bytes(len(numbers)) :].clone().view(torch.bfloat16).double().view(-1, 2).tolist()
    parts = zip(numbers.double().split(GROUP_NUMBERS), back.double().split(GROUP_NUMBERS), ends, strict=True)
    return [(group, found, scale, minimum) for group, found, (scale, minimum) in parts]


@given(NUMBERS, CODECS)
def test_every_number_comes_back_within_half_a_scale(numbers: Tensor, codec: KVCodec) -> None:
    for group, found, scale, minimum in groups_of(numbers, codec):
        rounding = 2.0**-21 * max(abs(minimum), group.abs().max().item())
        assert ((found - group).abs() <= scale / 2 + rounding + _LEAST).all()


@given(NUMBERS, CODECS)
def test_a_scale_is_hardly_larger_than_it_has_to_be(numbers: Tensor, codec: KVCodec) -> None:
    for group, _, scale, minimum in groups_of(numbers, codec):
        least, largest = group.min().item(), group.max().item()
        assert least - 2**-7 * abs(least) - _LEAST <= minimum <= least
        needed = (largest - least + 2**-7 * abs(least)) / codec.largest_code
        assert scale <= (1 + 2**-6) * needed + 2 * _LEAST


@given(NUMBERS, CODECS, st.integers(0, 149), st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_a_group_that_is_not_finite_is_nan_and_the_others_are_as_before(
    numbers: Tensor, codec: KVCodec, place: int, bad: float
) -> None:
    place %= len(numbers)
    spoiled = numbers.clone()
    spoiled[place] = bad
    before, after = (decode(encode(each, codec), len(numbers), codec) for each in (numbers, spoiled))
    for group, (first, second) in enumerate(zip(before.split(GROUP_NUMBERS), after.split(GROUP_NUMBERS), strict=True)):
        if group == place // GROUP_NUMBERS:
            assert second.isnan().all()
        else:
            assert second.equal(first)
