"""Codes of four bits, eight to a word, the first in its lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor


def to_words(nibbles: Tensor) -> Tensor:
    """(rows, columns) of 0 to 15, uint8 -> (rows, columns / 8) int32; missing columns are zeros."""
    padded = torch.nn.functional.pad(nibbles, (0, -nibbles.shape[1] % 8)).view(len(nibbles), -1, 8)
    words = torch.zeros(padded.shape[:2], dtype=torch.int32, device=nibbles.device)
    for place in range(8):
        words |= padded[..., place].to(torch.int32) << 4 * place
    return words


def from_words(words: Tensor, num_columns: int) -> Tensor:
    """The way back."""
    places = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return (words[..., None] >> places & 15).to(torch.uint8).flatten(1)[:, :num_columns]
