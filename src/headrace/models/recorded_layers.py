"""Decoder layers whose calls of the C++ library are noted, and made again without the layer's own code.

Where weights stay in memory, layers stream them through the caches, and between two products Python finds nothing there
of what it needs: with few tokens its code takes a sixth of a sweep. So the second time that a layer sees so many tokens
its calls are recorded, and from then on made with other addresses, bit for bit the same; those of layers that follow
each other in one go.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from headrace.attention.paged import rows_of
from headrace.attention.ragged import KVPages, RaggedLayout
from headrace.compression.packed_linear import PackedLinear
from headrace.models.call_signatures import UNKNOWN, Arguments, Signature
from headrace.models.interleaved_layers import InterleavedLinear
from headrace.models.layer_table import AttentionSpec
from headrace.models.micro_batch import MicroBatchContext, current
from headrace.models.neighbours import Neighbours
from headrace.models.recording import Arena, Recording, watched
from headrace.models.takeover import EngineModel
from headrace.schedule.steps import Point

MOST_TOKENS = 128
"""With more, products take so long that Python hardly counts."""
_MOST_RECORDINGS = 8
_OWN_NUMBERS = 1.5
"""What a layer's calls write, in numbers that go into its linear layers or come out of them."""
_PRODUCTS = (nn.Linear, InterleavedLinear, PackedLinear)


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
    shared = _Shared(library, Arena(num_bytes), Arguments(), Neighbours(model.module))
    for index, layer in model.layers().items():
        if isinstance(model.table.layers[index].memory, AttentionSpec):
            shared.layers[index] = RecordedLayer(layer, index, shared)
            layer.forward = shared.layers[index].forward


@dataclass(slots=True)
class _Shared:
    """What the layers of a model share.

    Attributes:
        layers: by index.
        ahead: what the latest of them made beside its own calls.
    """

    library: ctypes.CDLL
    arena: Arena
    arguments: Arguments
    neighbours: Neighbours
    layers: dict[int, RecordedLayer] = field(default_factory=dict)
    ahead: _Ahead | None = None


class _Ahead(NamedTuple):
    """Layers whose calls were made together with those of the layer before them, and what the last of them returns."""

    layers: range
    result: Tensor


class RecordedLayer:
    """The forward of a layer.

    Attributes:
        can_be_recorded: nothing was seen to happen in it but calls of the library.
        recordings: by what it is called with, in the order of their making; None where an address is not understood.
        following: with which of them it is called right after the layer before, which is called with the same.
    """

    def __init__(self, layer: nn.Module, index: int, shared: _Shared) -> None:
        self._own: Callable[..., object] = layer.forward
        self._layer, self._index, self._shared = layer, index, shared
        self._points = Point("attention", index), Point("experts", index)
        self._latest: Signature | None = None
        self._pages: KVPages | None = None  # those that recordings know
        self.can_be_recorded = True
        self.recordings: dict[Signature, Recording | None] = {}
        self.following: set[Signature] = set()

    def forward(self, *args: object, **kwargs: object) -> object:  # torch's name
        """What the layer returns."""
        shared = self._shared
        if (ahead := shared.ahead) is not None:
            if self._index in ahead.layers:
                return self._pass_on(ahead, args)
            shared.ahead = None
        context, own = current(), partial(self._own, *args, **kwargs)
        if not self.can_be_recorded or not self._calls_for_it(context):
            return own()
        signature, inputs = shared.arguments.look_at(args, kwargs)
        is_next = bool(args) and shared.arguments.are_the_same and shared.neighbours.are_next(args[0], signature)
        if (recording := self.recordings.get(signature)) is not None:
            if is_next:  # last layers are recorded before others: of a prompt they run a few tokens only
                self.following.add(signature)
            return self._make(recording, signature, inputs, context)
        is_second, self._latest = signature == self._latest, signature
        if signature in self.recordings or UNKNOWN in signature:
            return own()
        if not is_second:
            shared.neighbours.ask()
            return own()
        result = self._record(signature, (*inputs, *_places(self._layout(context))), own)
        if is_next:
            self.following.add(signature)
        shared.neighbours.note(result, signature)
        return result

    def _pass_on(self, ahead: _Ahead, args: Sequence[object]) -> Tensor:
        """Returns what was made before."""
        if not args or args[0] is not ahead.result:
            raise RuntimeError(
                f"layer {self._index} was given something else than layer {self._index - 1} had returned, as it was "
                "when their calls were recorded: this model cannot have its layers recorded; please report it"
            )
        return ahead.result

    def _make(
        self, recording: Recording, signature: Signature, inputs: list[Tensor], context: MicroBatchContext
    ) -> Tensor:
        """Makes the layer's calls, and those of layers that are known to follow; returns the last one's result."""
        layout = self._layout(context)
        stretch = [recording, *self._followers(signature, context)]
        hidden, others, rows = inputs[0], (*inputs[1:], *_places(layout)), rows_of(layout)
        results = [recording.empty_result() for _ in stretch[:2]]
        for number, (one, following) in enumerate(zip_longest(stretch, stretch[1:])):
            result = results[number % 2]
            one.prepare((hidden, *others), result, rows, following)
            hidden = result
        recording.make()
        self._shared.ahead = _Ahead(range(self._index + 1, self._index + len(stretch)), hidden)
        return hidden

    def _followers(self, signature: Signature, context: MicroBatchContext) -> Iterator[Recording]:
        """Yields what was recorded of the layers behind this one, as long as each is known to follow."""
        if context.waits or context.skipped_layers:
            return
        group_of, layers = context.pools.group_of, self._shared.layers
        for index in count(self._index + 1):
            layer = layers.get(index)
            if layer is None or signature not in layer.following or group_of[index] != group_of[self._index]:
                return
            recording = layer.recordings.get(signature)
            if recording is None or not layer._calls_for_it(context):
                return
            yield recording

    def _layout(self, context: MicroBatchContext) -> RaggedLayout:
        layout = context.layouts[context.pools.group_of[self._index]]
        assert isinstance(layout, RaggedLayout), "it has attention"
        return layout

    def _calls_for_it(self, context: MicroBatchContext) -> bool:
        """Whether the layer may run without its own code, and should."""
        pages = context.pools.pages(self._index)
        if self._pages is None:
            self._pages = pages
        return (
            context.token_ids.shape[1] <= MOST_TOKENS
            and not context.only_stores
            and pages is self._pages
            and not context.brought
            and context.waits.isdisjoint(self._points)
        )

    def _record(self, signature: Signature, given: Sequence[Tensor], own: Callable[[], object]) -> object:
        assert self._pages is not None
        result, run = watched(self._shared.library, own)
        if run is None:
            self.can_be_recorded = False
            return result
        if len(self.recordings) == _MOST_RECORDINGS:
            oldest = next(iter(self.recordings))
            del self.recordings[oldest]
            self.following.discard(oldest)
        pages = (self._pages.keys, self._pages.values)
        staying = (*self._layer.parameters(), *self._layer.buffers(), *(kept for kept in pages if kept is not None))
        self.recordings[signature] = Recording.of(self._shared.library, run, self._shared.arena, given, staying)
        return result


def _places(layout: RaggedLayout) -> tuple[Tensor, Tensor]:
    """Returns where the micro-batch's KV is written."""
    return layout.write_blocks, layout.write_offsets
