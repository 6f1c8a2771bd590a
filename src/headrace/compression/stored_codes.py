"""From the tensors of a compressed-tensors checkpoint to a codec's codes, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.compression.nibbles import from_words, to_words
from headrace.compression.weight_codecs import Int4Codec, Int8Codec

_MIDDLE = 8
"""The zero of symmetric codes of four bits."""


def checkpoint_codec(group_size: int | None) -> Int8Codec | Int4Codec:
    """Returns the codec of a checkpoint whose scales are for groups of so many inputs, or, None, for whole outputs."""
    return Int8Codec() if group_size is None else Int4Codec(group_size)


def pack_stored(codec: Int8Codec | Int4Codec, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """Returns a weight as `codec` packs it, from a checkpoint's tensors.

    Args:
        codes: (N, K) int8, or (N, K / 8) int32.
        scales: (N, groups) of any floating-point dtype.
        zeros: (N / 8, groups) int32; None where codes are symmetric.
    """
    if isinstance(codec, Int8Codec):
        return codec.pack(codes, scales[:, 0].float())
    num_outputs, num_groups = scales.shape
    grouped = from_words(codes, num_groups * codec.group_size).view(num_outputs, num_groups, codec.group_size)
    if zeros is None:
        points = torch.full(scales.shape, _MIDDLE, dtype=torch.uint8)
    else:
        points = from_words(zeros.t().contiguous(), num_outputs).t()
    return codec.pack(grouped, scales.float(), points.contiguous())


def stored_tensors(codec: Int8Codec | Int4Codec, weight: Tensor) -> dict[str, Tensor]:
    """Returns what a checkpoint has instead of `weight` (N, K), by the last part of its name."""
    if isinstance(codec, Int8Codec):
        codes, scales = codec.codes(weight)
        return {"weight": codes, "weight_scale": scales[:, None].to(torch.bfloat16)}
    codes, scales, zeros = codec.codes(weight)
    return {
        "weight_packed": to_words(codes.flatten(1)),
        "weight_scale": scales.to(torch.bfloat16),
        "weight_zero_point": to_words(zeros.t().contiguous()).t().contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
