"""Memory that KV which lives elsewhere is brought into: the blocks of one micro-batch in one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.attention.ragged import KVPages
from headrace.kv_cache.page_shape import PageShape
from headrace.kv_cache.pools import page_element
from headrace.storage.aligned import PAGE_BYTES, pages_above
from headrace.storage.link import Buffer

Span = tuple[int, int]
"""(first byte, end) in a slab."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockRecord:
    """A block of one layer as it lies at home: its keys, then its values.

    Attributes:
        dtype: the model's.
    """

    shape: PageShape
    block_tokens: int
    dtype: torch.dtype

    @property
    def element(self) -> torch.dtype:
        """The type of what pages hold: numbers, or bytes."""
        return page_element(self.shape, self.dtype)

    @property
    def key_bytes(self) -> int:
        """Of one block; page-aligned in nearly all models, unless they are codes."""
        return self.shape.num_kv_heads * self.block_tokens * self.shape.key_columns * self.element.itemsize

    @property
    def value_bytes(self) -> int:
        """Of one block; none where a value is a part of its key."""
        return self.shape.num_kv_heads * self.block_tokens * self.shape.value_columns * self.element.itemsize

    @property
    def num_bytes(self) -> int:
        """Of one block."""
        return self.key_bytes + self.value_bytes

    @property
    def is_aligned(self) -> bool:
        """Whether keys and values begin and end at page borders wherever the first record does."""
        return self.key_bytes % PAGE_BYTES == 0 and self.value_bytes % PAGE_BYTES == 0

    def pages_of(self, records: Tensor) -> KVPages:
        """Returns records, (N, elements of one), as pages of N blocks."""
        shape, num_key_elements = self.shape, self.key_bytes // self.element.itemsize
        pages = (len(records), shape.num_kv_heads, self.block_tokens)
        keys, values = records[:, :num_key_elements], records[:, num_key_elements:]
        return KVPages(
            keys=keys.view(*pages, shape.key_columns),
            values=None if shape.latent else values.view(*pages, shape.value_columns),
            value_width=shape.value_width,
            codec=shape.codec,
        )


class Slab:
    """Holds up to `num_blocks` blocks: all their keys first, then all their values.

    Attributes:
        buffer: the memory.
    """

    def __init__(self, num_blocks: int, records: set[BlockRecord], allocate: Callable[[int], Buffer]) -> None:
        """Takes memory for the largest of `records`; other layers' fit as well."""
        self._num_blocks = num_blocks
        self.buffer = allocate(slab_bytes(num_blocks, records))
        self._pages = {record: self._view(record) for record in records}

    def pages(self, record: BlockRecord) -> KVPages:
        """Returns the memory as pages of a layer's blocks."""
        return self._pages[record]

    def spans(self, record: BlockRecord, first: int, end: int) -> list[Span]:
        """Returns where the records of blocks `first` to `end` belong, in the order of a record's parts."""
        keys, values = record.key_bytes, record.value_bytes
        if not values:
            return [(first * keys, end * keys)]
        start = self._values_start(record)
        spans = []
        for block in range(first, end):
            spans.append((block * keys, (block + 1) * keys))
            spans.append((start + block * values, start + (block + 1) * values))
        return spans

    def close(self) -> None:
        """Gives the memory back."""
        self._pages.clear()
        self.buffer.close()

    def _view(self, record: BlockRecord) -> KVPages:
        shape, element = record.shape, record.element
        pages = (self._num_blocks, shape.num_kv_heads, record.block_tokens)
        start = self._values_start(record)
        return KVPages(
            keys=self.buffer.tensor(0, (*pages, shape.key_columns), element),
            values=None if shape.latent else self.buffer.tensor(start, (*pages, shape.value_columns), element),
            value_width=shape.value_width,
            codec=shape.codec,
        )

    def _values_start(self, record: BlockRecord) -> int:
        return pages_above(self._num_blocks * record.key_bytes)


def slab_bytes(num_blocks: int, records: set[BlockRecord]) -> int:
    """Returns what a slab takes."""
    return max(
        pages_above(num_blocks * record.key_bytes) + pages_above(num_blocks * record.value_bytes) for record in records
    )
