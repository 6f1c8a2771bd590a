"""Where the tokens of a packed micro-batch and their keys and values are.

Shapes: T packed tokens, R chunks (one per sequence), B blocks of the longest table, N blocks of the pool,
S slots per block, H query heads, K KV heads, D width of a key, V width of a value, C elements of a page for one
of these: its numbers, or the bytes of its record where there is a codec.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.attention.rule import AttentionRule
from headrace.compression.kv_codec import KVCodec
from headrace.compression.kv_codes import decode, encode
from headrace.kernels.kv_write import write_kv
from headrace.kernels.library import library
from headrace.kernels.types import TYPES

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KVPages:
    """One layer's part of the pool.

    Attributes:
        keys: (N, K, S, C).
        values: (N, K, S, C), or None where a value is the first `value_width` numbers of its key (MLA latents).
        value_width: V.
        codec: of keys and values. A latent and what remains of its key are two records, one behind the other.
    """

    keys: Tensor
    values: Tensor | None
    value_width: int
    codec: KVCodec | None = None

    def write(self, keys: Tensor, values: Tensor | None, layout: RaggedLayout) -> None:
        """Stores the micro-batch's new keys (T, K, D) and values (T, K, V) at `layout`'s places.

        What a query must not see is multiplied by 0, which only finite values survive. So a value that is not finite is
        stored as 0, and its key as NaN: whoever sees it gets NaN, and nobody else.
        """
        codec, found = self.codec, library()
        if found is not None and self.keys.device.type == "cpu" and keys.dtype in TYPES:
            write_kv(
                found,
                keys,
                values,
                key_pages=self.keys,
                value_pages=self.values,
                value_width=self.value_width,
                blocks=layout.write_blocks,
                slots=layout.write_offsets,
                code_bits=None if codec is None else codec.bits,
            )
        else:
            self._write_plainly(keys, values, layout)

    def _write_plainly(self, keys: Tensor, values: Tensor | None, layout: RaggedLayout) -> None:
        if values is None:
            latents, lost = _finite(keys[..., : self.value_width])
            stored = self._stored(latents, keys[..., self.value_width :] + lost)
        else:
            values, lost = _finite(values)
            stored = self._stored(keys + lost)
        self.keys[layout.write_blocks, :, layout.write_offsets] = stored
        if self.values is not None and values is not None:
            self.values[layout.write_blocks, :, layout.write_offsets] = self._stored(values)

    def numbers(self, keys: Tensor, values: Tensor | None, width: int) -> tuple[Tensor, Tensor]:
        """Returns keys (..., D = `width`) and values (..., V) in fp32 for what was taken of both pages, (..., C) each.

        Behind a row's last token a page may hold anything, of which codes can make NaN: as a value that is 0.
        """
        if self.codec is None:
            wide = keys.float()
            return wide, wide[..., : self.value_width] if values is None else values.float()
        if values is not None:
            return decode(keys, width, self.codec), _without_nan(decode(values, self.value_width, self.codec))
        latent_bytes = self.codec.num_bytes(self.value_width)
        latents = _without_nan(decode(keys[..., :latent_bytes], self.value_width, self.codec))
        if width == self.value_width:
            return latents, latents
        rest = decode(keys[..., latent_bytes:], width - self.value_width, self.codec)
        return torch.cat((latents, rest), dim=-1), latents

    def _stored(self, *parts: Tensor) -> Tensor:
        """(T, K, parts of the width) -> (T, K, C)."""
        if self.codec is None:
            numbers = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
            return numbers.to(self.keys.dtype)
        return torch.cat([encode(part, self.codec) for part in parts if part.shape[-1]], dim=-1)


def _without_nan(values: Tensor) -> Tensor:
    return values.nan_to_num_(0.0, 0.0, 0.0)


def _finite(values: Tensor) -> tuple[Tensor, Tensor]:
    """(T, K, V) -> the same with 0 for what is not finite, and (T, K, 1): NaN where there was such a number, else 0."""
    return values.nan_to_num(0.0, 0.0, 0.0), (values - values).sum(dim=-1, keepdim=True)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RaggedLayout:
    """A micro-batch as one KV group sees it.

    Attributes:
        starts: (R,) position of each chunk's first token.
        lengths: (R,) tokens of each chunk.
        block_table: (R, B) pool block of every `block_tokens` positions; -1 where freed or absent.
        write_blocks, write_offsets: (T,) pool block and slot in it of each new token, on the pool's device.
        plans: what a backend derives from this layout and wants to keep for the other layers of the group.
    """

    block_tokens: int
    starts: Integers
    lengths: Integers
    block_table: Integers
    write_blocks: Tensor
    write_offsets: Tensor
    plans: dict[tuple[int, ...], object] = field(default_factory=dict)

    @staticmethod
    def build(
        *, block_tokens: int, starts: Integers, lengths: Integers, block_table: Integers, device: torch.device
    ) -> RaggedLayout:
        """Derives where the new tokens go from the chunks and their block tables."""
        rows = np.repeat(np.arange(len(starts)), lengths)
        firsts = np.cumsum(lengths) - lengths
        positions = np.arange(int(lengths.sum())) - np.repeat(firsts - starts, lengths)
        return RaggedLayout(
            block_tokens=block_tokens,
            starts=starts,
            lengths=lengths,
            block_table=block_table,
            write_blocks=torch.from_numpy(block_table[rows, positions // block_tokens]).to(device),
            write_offsets=torch.from_numpy(positions % block_tokens).to(device),
        )

    def of_last(self, counts: Integers, tokens: Tensor) -> RaggedLayout:
        """Returns the layout of the last `counts` (R,) tokens of each chunk alone, which are `tokens` among all."""
        rows = np.flatnonzero(counts)
        return RaggedLayout(
            block_tokens=self.block_tokens,
            starts=(self.starts + self.lengths - counts)[rows],
            lengths=counts[rows],
            block_table=self.block_table[rows],
            write_blocks=self.write_blocks[tokens],
            write_offsets=self.write_offsets[tokens],
        )

    @property
    def query_starts(self) -> Integers:
        """(R,) place of each chunk's first token among the packed ones."""
        return np.cumsum(self.lengths) - self.lengths


class AttentionBackend(Protocol):
    """Attends over paged keys and values that already hold the micro-batch's own."""

    def attend(self, query: Tensor, pages: KVPages, layout: RaggedLayout, rule: AttentionRule) -> Tensor:
        """Returns (T, H, V) in the query's dtype for a query of (T, H, D); modifies nothing else."""
        ...
