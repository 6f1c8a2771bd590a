"""The tensors behind the block numbers: keys and values in pages, states in slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from headrace.attention.ragged import KVPages
from headrace.kv_cache.blocks import BlockCopy
from headrace.kv_cache.page_shape import PageShape
from headrace.storage.zero_pages import give_back_pages

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""(shape, dtype) -> zeros, charged to whoever pays. Zeros, not garbage: padding is read, and masked by 0 * value."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StateSlots:
    """One layer's recurrent memory: conv (slots, channels, kernel), recurrent (slots, ...) in fp32."""

    conv: Tensor
    recurrent: Tensor

    def copy(self, source: int, target: int) -> None:
        """Copies one sequence's state."""
        self.conv[target] = self.conv[source]
        self.recurrent[target] = self.recurrent[source]


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotShape:
    """State of one sequence in one layer."""

    conv_shape: tuple[int, ...]
    recurrent_shape: tuple[int, ...]


class KVPools:
    """All layers' pages and slots, allocated once."""

    def __init__(
        self,
        *,
        layers: Sequence[tuple[int | None, PageShape | SlotShape | None]],
        num_blocks: Sequence[int],
        block_tokens: int,
        dtype: torch.dtype,
        allocate: Allocate,
    ) -> None:
        """Allocates everything.

        Args:
            layers: for each layer its group, None where it keeps nothing at all, and what it keeps here, if anything.
            num_blocks: blocks (or slots) of each group.
            dtype: of convolution states, and of keys and values that are no codes.
        """
        self.group_of = {layer: group for layer, (group, _) in enumerate(layers) if group is not None}
        self._members: list[list[KVPages | StateSlots]] = [[] for _ in num_blocks]
        self._layers: list[KVPages | StateSlots | None] = []
        for group, shape in layers:
            if group is None or shape is None:
                self._layers.append(None)
                continue
            count = num_blocks[group]
            memory: KVPages | StateSlots
            if isinstance(shape, SlotShape):
                memory = StateSlots(
                    conv=allocate((count, *shape.conv_shape), dtype),
                    recurrent=allocate((count, *shape.recurrent_shape), torch.float32),
                )
            else:
                memory = make_pages(shape, count, block_tokens, dtype, allocate)
            self._members[group].append(memory)
            self._layers.append(memory)

    def pages(self, layer: int) -> KVPages:
        """Returns an attention layer's pages."""
        memory = self._layers[layer]
        assert isinstance(memory, KVPages), f"layer {layer} keeps a state, not keys and values"
        return memory

    def slots(self, layer: int) -> StateSlots:
        """Returns a state layer's slots."""
        memory = self._layers[layer]
        assert isinstance(memory, StateSlots), f"layer {layer} keeps keys and values, not a state"
        return memory

    def tensors(self, group: int) -> list[Tensor]:
        """Returns all that is kept here of a group, layer after layer: keys, then values, or a state's two parts.

        The first dimension of each is that of the blocks.
        """
        found: list[Tensor] = []
        for memory in self._members[group]:
            if isinstance(memory, StateSlots):
                found += [memory.conv, memory.recurrent]
            else:
                found += [memory.keys] if memory.values is None else [memory.keys, memory.values]
        return found

    def give_back(self, blocks: Sequence[Sequence[int]]) -> None:
        """Lets go of the host memory of blocks that hold nothing, given by group; they are zeros from then on."""
        for group, members in enumerate(blocks):
            for tensor in self.tensors(group):
                for first, end in _runs(members):
                    give_back_pages(tensor, first, end)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Makes the copies that a sweep asks for before it starts."""
        for copy in copies:
            for memory in self._members[copy.group]:
                if isinstance(memory, StateSlots):
                    memory.copy(copy.source, copy.target)
                else:
                    memory.keys[copy.target] = memory.keys[copy.source]
                    if memory.values is not None:
                        memory.values[copy.target] = memory.values[copy.source]


def make_pages(shape: PageShape, num_blocks: int, block_tokens: int, dtype: torch.dtype, allocate: Allocate) -> KVPages:
    """Returns pages of zeros, in a model of `dtype`."""
    places, element = (num_blocks, shape.num_kv_heads, block_tokens), page_element(shape, dtype)
    return KVPages(
        keys=allocate((*places, shape.key_columns), element),
        values=None if shape.latent else allocate((*places, shape.value_columns), element),
        value_width=shape.value_width,
        codec=shape.codec,
    )


def page_element(shape: PageShape, dtype: torch.dtype) -> torch.dtype:
    """Returns the type of a page's elements, in a model of `dtype`."""
    return dtype if shape.codec is None else torch.uint8


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields where consecutive numbers begin, and where they end."""
    ordered = sorted(numbers)
    breaks = [index for index in range(1, len(ordered)) if ordered[index] != ordered[index - 1] + 1]
    for first, end in pairwise([0, *breaks, len(ordered)] if ordered else []):
        yield ordered[first], ordered[end - 1] + 1
