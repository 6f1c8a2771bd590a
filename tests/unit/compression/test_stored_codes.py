"""A checkpoint's codes become the codec's own, bit for bit."""

from __future__ import annotations

import pytest
import torch

from headrace.compression.nibbles import from_words, to_words
from headrace.compression.stored_codes import checkpoint_codec, pack_stored, stored_tensors
from headrace.compression.weight_codecs import Int4Codec, Int8Codec


@pytest.mark.parametrize("codec", [Int8Codec(), Int4Codec(32), Int4Codec(64)], ids=lambda codec: codec.name)
@pytest.mark.parametrize("num_outputs", [64, 104])
def test_a_weight_that_was_stored_is_packed_as_at_once(codec: Int8Codec | Int4Codec, num_outputs: int) -> None:
    weight = torch.randn(num_outputs, 192)
    stored = stored_tensors(codec, weight)
    codes = stored.get("weight_packed", stored.get("weight"))
    assert codes is not None
    found = pack_stored(codec, codes, stored["weight_scale"], stored.get("weight_zero_point"))
    assert torch.equal(found, codec.encode(weight))


def test_symmetric_codes_have_their_zero_in_the_middle() -> None:
    codec = Int4Codec(32)
    words = torch.full((64, 4), 0x11111111, dtype=torch.int32)  # all codes 1: -7 of the symmetric range
    packed = pack_stored(codec, words, torch.full((64, 1), 0.5), None)
    assert torch.equal(codec.decode(packed, 64, 32), torch.full((64, 32), -3.5))


@pytest.mark.parametrize("num_columns", [1, 7, 8, 40])
def test_words_hold_eight_codes_the_first_in_the_lowest_bits(num_columns: int) -> None:
    codes = torch.arange(3 * num_columns, dtype=torch.uint8).view(3, num_columns) % 16
    words = to_words(codes)
    assert words.shape == (3, -(-num_columns // 8))
    assert words[0, 0].item() & 15 == 0
    assert torch.equal(from_words(words, num_columns), codes)


def test_a_checkpoint_with_groups_is_of_4_bits() -> None:
    assert (checkpoint_codec(None), checkpoint_codec(128)) == (Int8Codec(), Int4Codec(128))
