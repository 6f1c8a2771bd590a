"""Random weights for measurements: made in place, at the speed of memory, the same for the same seed and name."""

from __future__ import annotations

import zlib

import torch

# transformers' usual initializer_range.
_STANDARD_DEVIATION = 0.02
# Prime, so that the repeated block does not line up with the rows of a matrix.
_BLOCK_ELEMENTS = 1_048_573


def fill_random(tensor: torch.Tensor, name: str, seed: int) -> None:
    """Overwrites `tensor` in place with numbers that depend on `seed` and `name` alone.

    Matrices repeat a block of normal numbers with standard deviation 0.02, so that terabytes cost a copy and no
    arithmetic. Vectors are ones (weights of norms) or small (all others). Integers become zero.
    """
    if not tensor.is_floating_point():
        tensor.zero_()
        return
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    flat = tensor.view(-1)
    block = torch.randn(min(len(flat), _BLOCK_ELEMENTS), generator=generator).mul_(_STANDARD_DEVIATION)
    if tensor.dim() < 2 and name.endswith("weight"):
        block += 1
    block = block.to(dtype=tensor.dtype, device=tensor.device)
    for first in range(0, len(flat), _BLOCK_ELEMENTS):
        part = flat[first : first + _BLOCK_ELEMENTS]
        part.copy_(block[: len(part)])
