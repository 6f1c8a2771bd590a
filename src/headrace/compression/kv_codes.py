"""Numbers to codes and back, in plain torch: the reference of the kernels, and what GPUs use. See `kv_codec`.

G groups of a record of W numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.compression.kv_codec import GROUP_NUMBERS, KVCodec

_LOW_HALF, _HIGH_HALF = 0xFFFF, ~0xFFFF
_LEAST_SCALE = 2.0**-126
"""The least normal number: equal numbers have a scale, too."""


def encode(numbers: Tensor, codec: KVCodec) -> Tensor:
    """Returns records, (..., codec.num_bytes(W)) of uint8, for (..., W) numbers of any float type.

    A group with a number that is not finite has NaN for its scale, and so in all its numbers.
    """
    width = numbers.shape[-1]
    groups = _in_groups(numbers.float())
    least, largest = torch.aminmax(groups, dim=-1, keepdim=True)
    minimum = _rounded_down(least)
    step = (largest - minimum) / codec.largest_code
    scale = torch.where(step < torch.inf, _away_from_zero(step).clamp_min(_LEAST_SCALE), torch.nan)
    codes = (groups - minimum).div_(scale).round_().clamp_(0, codec.largest_code).nan_to_num_(0).to(torch.uint8)
    codes = codes.flatten(-2)[..., :width]
    if codec.bits == 4:
        codes = _packed(codes)
    ends = torch.cat((scale, minimum), dim=-1).to(torch.bfloat16)
    return torch.cat((codes, ends.view(torch.uint8).flatten(-2)), dim=-1)


def decode(records: Tensor, width: int, codec: KVCodec) -> Tensor:
    """Returns the numbers, (..., W) in fp32, of records (..., codec.num_bytes(W)) of `width` numbers."""
    num_code_bytes = codec.code_bytes(width)
    codes, ends = records[..., :num_code_bytes], records[..., num_code_bytes:]
    if codec.bits == 4:
        codes = torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)[..., :width]
    numbers = codes.float()
    # A copy of their own, which begins where a number may.
    pairs = ends.clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()
    for group in range(pairs.shape[-1] // 2):
        part = numbers[..., group * GROUP_NUMBERS : (group + 1) * GROUP_NUMBERS]
        part.mul_(pairs[..., 2 * group, None]).add_(pairs[..., 2 * group + 1, None])
    return numbers


def _in_groups(numbers: Tensor) -> Tensor:
    """(..., W) -> (..., G, at most 64); the last number fills the last group up, which changes neither of its ends."""
    width = numbers.shape[-1]
    size = min(width, GROUP_NUMBERS)
    missing = -width % size
    if missing:
        numbers = torch.cat((numbers, numbers[..., -1:].expand(*numbers.shape[:-1], missing)), dim=-1)
    return numbers.reshape(*numbers.shape[:-1], -1, size)


def _packed(codes: Tensor) -> Tensor:
    """(..., W) codes of 4 bits -> two in each byte."""
    if codes.shape[-1] % 2:
        codes = torch.cat((codes, torch.zeros_like(codes[..., :1])), dim=-1)
    return codes[..., 0::2] | codes[..., 1::2] << 4


def _away_from_zero(numbers: Tensor) -> Tensor:
    """fp32 -> the next bfloat16, as fp32, whose magnitude is not smaller."""
    return ((numbers.contiguous().view(torch.int32) + _LOW_HALF) & _HIGH_HALF).view(torch.float32)


def _rounded_down(numbers: Tensor) -> Tensor:
    """fp32 -> the next bfloat16, as fp32, that is not larger."""
    toward_zero = (numbers.contiguous().view(torch.int32) & _HIGH_HALF).view(torch.float32)
    return torch.where(numbers < 0, _away_from_zero(numbers), toward_zero)
