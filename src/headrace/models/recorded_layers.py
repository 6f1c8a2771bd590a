"""Decoder layers whose calls of the C++ library are noted, and made again without the layer's own code.

Where weights stay in memory, layers stream them through the caches, and between two products Python finds nothing there
of what it needs: with few tokens its code takes a sixth of a sweep. So the second time that a layer sees so many tokens
its calls are recorded, and from then on made with other addresses, bit for bit the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import is_not

import torch
from torch import Tensor, nn

from headrace.attention.paged import rows_of
from headrace.attention.ragged import KVPages, RaggedLayout
from headrace.compression.packed_linear import PackedLinear
from headrace.models.interleaved_layers import InterleavedLinear
from headrace.models.layer_table import AttentionSpec
from headrace.models.micro_batch import MicroBatchContext, current
from headrace.models.recording import Arena, Recording, watched
from headrace.models.takeover import EngineCache, EngineModel, MaskRule
from headrace.schedule.steps import Point

MOST_TOKENS = 64
"""With more, products take so long that nothing else counts."""
_MOST_RECORDINGS = 8
_OWN_NUMBERS = 1.5
"""What a layer's calls write, in numbers that go into its linear layers or come out of them."""
_PRODUCTS = (nn.Linear, InterleavedLinear, PackedLinear)

Signature = tuple[object, ...]
_UNKNOWN = object()
"""In a signature: something that may be different inside."""


def arena_bytes(model: EngineModel, dtype: torch.dtype, num_tokens: int) -> int:
    """Returns what calls of a layer with `num_tokens` write."""
    widths = [
        sum(module.in_features + module.out_features for module in layer.modules() if isinstance(module, _PRODUCTS))
        for layer in model.layers().values()
    ]
    return int(_OWN_NUMBERS * max(widths, default=0) * dtype.itemsize * num_tokens)


def record_layers(library: ctypes.CDLL, model: EngineModel, num_bytes: int) -> None:
    """Gives layers with attention, of a model whose weights stay, a `forward` that records calls and makes them again.

    Args:
        num_bytes: `arena_bytes`.
    """
    arena, arguments = Arena(num_bytes), _Arguments()
    for index, layer in model.layers().items():
        if isinstance(model.table.layers[index].memory, AttentionSpec):
            layer.forward = RecordedLayer(library, layer, index, arena, arguments).forward


class RecordedLayer:
    """The forward of a layer.

    Attributes:
        can_be_recorded: nothing was seen to happen in it but calls of the library.
        recordings: by what it is called with, in the order of their making; None where an address is not understood.
    """

    def __init__(self, library: ctypes.CDLL, layer: nn.Module, index: int, arena: Arena, arguments: _Arguments) -> None:
        self._own: Callable[..., object] = layer.forward
        self._library, self._layer, self._index = library, layer, index
        self._points = Point("attention", index), Point("experts", index)
        self._arena, self._arguments = arena, arguments
        self._latest: Signature | None = None
        self._pages: KVPages | None = None  # those that recordings know
        self.can_be_recorded = True
        self.recordings: dict[Signature, Recording | None] = {}

    def forward(self, *args: object, **kwargs: object) -> object:  # torch's name
        """What the layer returns."""
        context, own = current(), partial(self._own, *args, **kwargs)
        if not self.can_be_recorded or not self._calls_for_it(context):
            return own()
        signature, inputs = self._arguments.look_at(args, kwargs)
        layout = context.layouts[context.pools.group_of[self._index]]
        assert isinstance(layout, RaggedLayout), "it has attention"
        given = (*inputs, layout.write_blocks, layout.write_offsets)
        if (recording := self.recordings.get(signature)) is not None:
            return recording.replay(given, rows_of(layout))
        is_second, self._latest = signature == self._latest, signature
        is_new = signature not in self.recordings and _UNKNOWN not in signature
        return self._record(signature, given, own) if is_second and is_new else own()

    def _calls_for_it(self, context: MicroBatchContext) -> bool:
        """Whether the layer may run without its own code, and should."""
        pages = context.pools.pages(self._index)
        if self._pages is None:
            self._pages = pages
        return (
            context.token_ids.shape[1] <= MOST_TOKENS
            and pages is self._pages
            and not context.brought
            and context.waits.isdisjoint(self._points)
        )

    def _record(self, signature: Signature, given: Sequence[Tensor], own: Callable[[], object]) -> object:
        assert self._pages is not None
        result, run = watched(self._library, own)
        if run is None:
            self.can_be_recorded = False
            return result
        if len(self.recordings) == _MOST_RECORDINGS:
            del self.recordings[next(iter(self.recordings))]
        pages = (self._pages.keys, self._pages.values)
        staying = (*self._layer.parameters(), *self._layer.buffers(), *(kept for kept in pages if kept is not None))
        self.recordings[signature] = Recording.of(self._library, run, self._arena, given, staying)
        return result


class _Arguments:
    """What layers are called with: all but the first argument is often the same as for the layer before."""

    def __init__(self) -> None:
        self._latest: tuple[object, ...] = ()
        self._signature: Signature = ()
        self._inputs: list[Tensor] = []

    def look_at(self, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[Signature, list[Tensor]]:
        """Returns what must be equal of two calls of a layer to be recorded as one, and the tensors among them."""
        first: list[Tensor] = []
        parts = [*_parts(args[:1], first)]
        others = (*args[1:], *kwargs.values())
        if len(others) != len(self._latest) or any(map(is_not, others, self._latest)):
            self._inputs = []
            self._signature = (*kwargs, *_parts(others, self._inputs))
            self._latest = others
        return (*parts, *self._signature), first + self._inputs


def _parts(values: Sequence[object], inputs: list[Tensor]) -> Iterator[object]:
    """Yields what must be equal of two arguments for the same calls to be made, and notes tensors in `inputs`."""
    for value in values:
        match value:
            case MaskRule():
                yield value.allowed is None, value.window
            case Tensor():
                inputs.append(value)
                yield value.shape, value.stride(), value.dtype
            case tuple():
                yield from _parts(value, inputs)
            case None | bool() | int() | float() | str():
                yield value
            case EngineCache():
                yield EngineCache
            case _:
                yield _UNKNOWN
