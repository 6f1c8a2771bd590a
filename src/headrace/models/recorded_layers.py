"""Decoder layers whose calls of the C++ library are noted, and made again without the layer's own code.

Where weights stay in memory, layers stream them through the caches, and between two products Python finds nothing there
of what it needs: with few tokens its code takes a sixth of a sweep. So the second time that a layer sees so many tokens
its calls are noted, and from then on made with other addresses.

That is done only where it can make no difference. Nothing but the library and views may have touched numbers; whatever
a call reads or writes must be an argument of the layer, a weight of its own, its pages, or what an earlier call wrote.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import Array, Structure, c_void_p
from operator import is_not
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.attention.paged import rows_of
from headrace.attention.ragged import KVPages, RaggedLayout
from headrace.compression.packed_linear import PackedLinear
from headrace.kernels.attention import Attention
from headrace.kernels.calls import Call, noted
from headrace.kernels.library import library
from headrace.kernels.pointwise import added
from headrace.kernels.replay import Move, Replay
from headrace.kernels.types import is_known
from headrace.models.interleaved_layers import InterleavedLinear
from headrace.models.layer_table import AttentionSpec
from headrace.models.micro_batch import MicroBatchContext, current
from headrace.models.takeover import EngineCache, EngineModel, MaskRule
from headrace.schedule.steps import Point

MOST_TOKENS = 64
"""With more, products take so long that nothing else counts."""
_MOST_RECORDINGS = 8
_BORDER_BYTES = 64
_OWN_NUMBERS = 1.5
"""What a layer's calls write, in numbers that go into its linear layers or come out of them."""
_PRODUCTS = (nn.Linear, InterleavedLinear, PackedLinear)
_ROW_FIELDS = frozenset(("starts", "lengths", "query_starts", "block_table"))

Signature = tuple[object, ...]
_UNKNOWN = object()
"""In a signature: something that may be different inside."""


class Arena:
    """Memory for what calls write that only later calls of the same layer read; all layers use the same."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._memory = torch.empty(num_bytes + _BORDER_BYTES, dtype=torch.uint8)  # the system gives what is written to

    @property
    def first(self) -> int:
        """The address at which it begins, on a border of cache lines."""
        return -(-self._memory.data_ptr() // _BORDER_BYTES) * _BORDER_BYTES


def arena_bytes(model: EngineModel, dtype: torch.dtype, num_tokens: int) -> int:
    """Returns what calls of a layer with `num_tokens` write."""
    widths = [
        sum(module.in_features + module.out_features for module in layer.modules() if isinstance(module, _PRODUCTS))
        for layer in model.layers().values()
    ]
    return int(_OWN_NUMBERS * max(widths, default=0) * dtype.itemsize * num_tokens)


def record_layers(model: EngineModel, num_bytes: int) -> None:
    """Gives layers with attention, of a model whose weights stay, a `forward` that notes calls and makes them again.

    Args:
        num_bytes: `arena_bytes`.
    """
    arena, arguments = Arena(num_bytes), _Arguments()
    for index, layer in model.layers().items():
        if isinstance(model.table.layers[index].memory, AttentionSpec):
            layer.forward = RecordedLayer(layer, index, arena, arguments).forward


class RecordedLayer:
    """The forward of a layer.

    Attributes:
        can_be_recorded: nothing was seen to happen in it but calls of the library.
        recordings: by what it is called with, in the order of their making; None where an address is not understood.
    """

    def __init__(self, layer: nn.Module, index: int, arena: Arena, arguments: _Arguments) -> None:
        self._own: Callable[..., object] = layer.forward
        self._points = Point("attention", index), Point("experts", index)
        self._layer, self._index, self._arena, self._arguments = layer, index, arena, arguments
        self._latest: Signature | None = None
        self.can_be_recorded = True
        self.recordings: dict[Signature, Recording | None] = {}

    def forward(self, *args: object, **kwargs: object) -> object:  # torch's name
        """What the layer returns, bit for bit."""
        context = current()
        if (
            not self.can_be_recorded
            or context.token_ids.shape[1] > MOST_TOKENS
            or context.brought
            or not context.waits.isdisjoint(self._points)
        ):
            return self._own(*args, **kwargs)
        signature, inputs = self._arguments.look_at(args, kwargs)
        if _UNKNOWN in signature:
            return self._own(*args, **kwargs)
        if signature not in self.recordings:
            is_second, self._latest = signature == self._latest, signature
            return self._record(context, signature, inputs, args, kwargs) if is_second else self._own(*args, **kwargs)
        recording = self.recordings[signature]
        if recording is None or recording.pages is not context.pools.pages(self._index):
            return self._own(*args, **kwargs)
        return recording.replay(inputs, self._layout(context))

    def _record(
        self,
        context: MicroBatchContext,
        signature: Signature,
        inputs: Sequence[Tensor],
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> object:
        """Runs the layer and notes what it calls."""
        with noted() as calls, _Watch() as watch:
            result = self._own(*args, **kwargs)
        if not (watch.is_pure and isinstance(result, Tensor)):
            self.can_be_recorded = False
            return result
        if len(self.recordings) == _MOST_RECORDINGS:
            del self.recordings[next(iter(self.recordings))]
        self.recordings[signature] = self._recording(context, calls, inputs, watch.written, result)
        return result

    def _recording(
        self,
        context: MicroBatchContext,
        calls: Sequence[Call],
        inputs: Sequence[Tensor],
        written: Sequence[Tensor],
        result: Tensor,
    ) -> Recording | None:
        pages, layout = context.pools.pages(self._index), self._layout(context)
        found, moving = library(), _moving(inputs, layout, result)
        assert found is not None, "only where it is are layers recorded"
        if not result.is_contiguous() or len({tensor.data_ptr() for tensor in moving}) < len(moving):
            return None
        staying = [*self._layer.parameters(), *self._layer.buffers(), pages.keys]
        staying += [] if pages.values is None else [pages.values]
        places, end = [], 0
        for tensor in written:
            places.append((_Span.of(tensor), end))
            end += -(-tensor.nbytes // _BORDER_BYTES) * _BORDER_BYTES
        if end > self._arena.num_bytes:
            return None
        moves, spans = [], [_Span.of(tensor) for tensor in moving]
        kept = [_Span.of(tensor) for tensor in staying]
        for address in (address for call in calls for address in _addresses(call.argument)):
            number = address.value or 0
            source = next((index for index, span in enumerate(spans) if number in span), None)
            if source is not None:
                moves.append(Move(address, source, number - spans[source].first))
            elif (place := next((place for place in places if number in place[0]), None)) is not None:
                address.value = self._arena.first + place[1] + number - place[0].first
            elif not any(number in span for span in kept):
                return None
        return Recording(found, calls, moves, pages, result)

    def _layout(self, context: MicroBatchContext) -> RaggedLayout:
        layout = context.layouts[context.pools.group_of[self._index]]
        assert isinstance(layout, RaggedLayout)
        return layout


class Recording:
    """A layer's calls, as they are made again.

    Attributes:
        pages: the keys and values that they know.
    """

    def __init__(
        self, found: ctypes.CDLL, calls: Sequence[Call], moves: Sequence[Move], pages: KVPages, result: Tensor
    ) -> None:
        self.pages = pages
        self._calls = Replay(found, calls, moves)
        self._attends = [call.argument for call in calls if isinstance(call.argument, Attention)]
        self._shape, self._dtype = result.shape, result.dtype

    def replay(self, inputs: Sequence[Tensor], layout: RaggedLayout) -> Tensor:
        """Makes them with the layer's arguments and for the tokens of `layout`."""
        result = torch.empty(self._shape, dtype=self._dtype)
        for attend in self._attends:
            rows_of(layout).put_into(attend)
        self._calls.make([tensor.data_ptr() for tensor in _moving(inputs, layout, result)])
        return result


def _moving(inputs: Sequence[Tensor], layout: RaggedLayout, result: Tensor) -> list[Tensor]:
    """Returns the sources of a layer's calls."""
    return [*inputs, layout.write_blocks, layout.write_offsets, result]


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, sums are the library's, and it is seen what else happens to numbers.

    Attributes:
        is_pure: nothing has, but for views.
        written: memory that was allocated for what is written into it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_pure = True
        self.written: list[Tensor] = []
        self._results: list[object] = []
        """All of them: an address must not stand for a copy at first, and for something else later."""

    def __torch_dispatch__(
        self,
        function: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        found = library()
        match args:
            case Tensor() as first, Tensor() as second if (
                function is torch.ops.aten.add.Tensor and not kwargs and found is not None and _are_alike(first, second)
            ):
                result: object = added(found, first, second)
                is_written = True
            case _:
                result = function(*args, **(kwargs or {}))
                is_written = function in _ALLOCATIONS
        self._results.append(result)
        if is_written and isinstance(result, Tensor):
            self.written.append(result)
        elif not function.is_view:
            self.is_pure = False
        return result


_ALLOCATIONS = frozenset(
    (torch.ops.aten.new_empty.default, torch.ops.aten.empty_like.default, torch.ops.aten.empty.memory_format)
)


class _Span(NamedTuple):
    """Addresses of a tensor's numbers."""

    first: int
    end: int

    @staticmethod
    def of(tensor: Tensor) -> _Span:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return _Span(tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize)

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.first <= address < self.end


def _are_alike(first: Tensor, second: Tensor) -> bool:
    return (
        is_known(first)
        and second.is_cpu
        and first.dtype is second.dtype
        and first.shape == second.shape
        and first.is_contiguous()
        and second.is_contiguous()
    )


class _Arguments:
    """What layers are called with: all but the first argument is often the same as for the layer before."""

    def __init__(self) -> None:
        self._latest: tuple[object, ...] = ()
        self._signature: Signature = ()
        self._inputs: list[Tensor] = []

    def look_at(self, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[Signature, list[Tensor]]:
        """Returns what must be equal of two calls of a layer to be noted as one, and the tensors among them."""
        first: list[Tensor] = []
        parts = [*_parts(args[:1], first)]
        others = (*args[1:], *kwargs.values())
        if len(others) != len(self._latest) or any(map(is_not, others, self._latest)):
            self._inputs = []
            self._signature = (*kwargs, *_parts(others, self._inputs))
            self._latest = others
        return (*parts, *self._signature), first + self._inputs


def _parts(values: object, inputs: list[Tensor]) -> Iterator[object]:
    """Yields what must be equal of two arguments for the same calls to be made, and notes tensors in `inputs`."""
    for value in values:  # type: ignore[attr-defined]
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


def _addresses(argument: Structure) -> Iterator[c_void_p]:
    """Yields the addresses in a call, where they lie, but for those of its rows."""
    for name, kind, *_ in argument._fields_:
        if isinstance(argument, Attention) and name in _ROW_FIELDS:
            continue
        value = getattr(argument, name)
        if kind is c_void_p and value is not None:
            yield c_void_p.from_buffer(argument, getattr(type(argument), name).offset)
        elif isinstance(value, Array) and issubclass(value._type_, Structure):
            for part in value:
                yield from _addresses(part)
