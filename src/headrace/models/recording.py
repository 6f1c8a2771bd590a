"""What one run of a layer calls of the C++ library, as it can be called again with other addresses.

Nothing but the library and views may have touched numbers meanwhile; whatever a call reads or writes must be known to
stay where it is, be given anew each time, or have been written by an earlier call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ctypes import Array, Structure, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.kernels.attention import Attention, Rows
from headrace.kernels.calls import Call, noted
from headrace.kernels.pointwise import added
from headrace.kernels.replay import Move, Replay
from headrace.kernels.types import is_known

_BORDER_BYTES = 64
_ROW_FIELDS = frozenset(("starts", "lengths", "query_starts", "block_table"))
_ALLOCATIONS = frozenset(
    (torch.ops.aten.new_empty.default, torch.ops.aten.empty_like.default, torch.ops.aten.empty.memory_format)
)


class Arena:
    """Memory for what calls write that only later calls of the same run read: any number of recordings may use it."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._memory = torch.empty(num_bytes + _BORDER_BYTES, dtype=torch.uint8)  # the system gives what is written to

    @property
    def first(self) -> int:
        """The address at which it begins, on a border of cache lines."""
        return -(-self._memory.data_ptr() // _BORDER_BYTES) * _BORDER_BYTES


class Run(NamedTuple):
    """Attributes:
    calls: what was called, in order.
    written: what was allocated, so that calls could write there.
    result: what was returned.
    """

    calls: list[Call]
    written: list[Tensor]
    result: Tensor


def watched(library: ctypes.CDLL, run: Callable[[], object]) -> tuple[object, Run | None]:
    """Returns what `run` returns, which must not suspend, and what it did; None where it did more than call."""
    with noted() as calls, _Watch(library) as watch:
        result = run()
    return result, Run(calls, watch.written, result) if watch.is_pure and isinstance(result, Tensor) else None


class Recording:
    """The calls of a run, as they are made again."""

    def __init__(self, library: ctypes.CDLL, run: Run, arena: Arena, moves: Sequence[Move]) -> None:
        self._arena = arena  # lies where calls write
        self._calls = Replay(library, run.calls, moves)
        self._attends = [call.argument for call in run.calls if isinstance(call.argument, Attention)]
        self._shape, self._dtype = run.result.shape, run.result.dtype

    @staticmethod
    def of(
        library: ctypes.CDLL, run: Run, arena: Arena, given: Sequence[Tensor], staying: Iterable[Tensor]
    ) -> Recording | None:
        """Returns the calls of `run`, which is of no use any more; None where an address is not understood.

        Args:
            given: what is given anew each time.
            staying: what calls may use beside that, which stays where it is.
        """
        result, moving = _Span.of(run.result), [_Span.of(tensor) for tensor in (*given, run.result)]
        written, end = [], 0
        for tensor in run.written:
            written.append((_Span.of(tensor), end))
            end += -(-tensor.nbytes // _BORDER_BYTES) * _BORDER_BYTES
        are_distinct = len({span.first for span in moving}) == len(moving)
        if end > arena.num_bytes or not are_distinct or all(span != result for span, _ in written):
            return None
        kept, moves = [_Span.of(tensor) for tensor in staying], []
        for address in (address for call in run.calls for address in _addresses(call.argument)):
            number = address.value or 0
            source = next((index for index, span in enumerate(moving) if number in span), None)
            if source is not None:
                moves.append(Move(address, source, number - moving[source].first))
            elif (place := next((place for place in written if number in place[0]), None)) is not None:
                address.value = arena.first + place[1] + number - place[0].first
            elif not any(number in span for span in kept):
                return None
        return Recording(library, run, arena, moves)

    def empty_result(self) -> Tensor:
        """Returns memory that what the run returns goes into."""
        return torch.empty(self._shape, dtype=self._dtype)

    def prepare(self, given: Sequence[Tensor], result: Tensor, rows: Rows, following: Recording | None = None) -> None:
        """Has `make` make the calls with what is given this time and for these rows, and then those of `following`."""
        for attend in self._attends:
            rows.put_into(attend)
        self._calls.prepare(
            [tensor.data_ptr() for tensor in (*given, result)], None if following is None else following._calls
        )

    def make(self) -> None:
        """Makes the calls that were prepared."""
        self._calls.make()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, sums are the library's, and it is seen what else happens to numbers.

    Attributes:
        is_pure: nothing has, but for views.
        written: memory that was allocated for what is written into it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_pure = True
        self.written: list[Tensor] = []
        self._library = library
        self._results: list[object] = []
        """All of them: an address must not stand for a copy at first, and for something else later."""

    def __torch_dispatch__(
        self,
        function: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        match args:
            case Tensor() as first, Tensor() as second if (
                function is torch.ops.aten.add.Tensor and not kwargs and _are_alike(first, second)
            ):
                result: object = added(self._library, first, second)
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


def _are_alike(first: Tensor, second: Tensor) -> bool:
    return (
        is_known(first)
        and second.is_cpu
        and first.dtype is second.dtype
        and first.shape == second.shape
        and first.is_contiguous()
        and second.is_contiguous()
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
