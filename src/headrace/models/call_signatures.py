"""What two calls of a layer must have in common for the one to be made as the other was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import is_not

from torch import Tensor

from headrace.models.engine_functions import EngineCache, MaskRule

Signature = tuple[object, ...]
UNKNOWN = object()
"""In a signature: something that may be different inside."""


class Arguments:
    """What layers are called with: all but the first argument is often the same as for the layer before.

    Attributes:
        are_the_same: it was, the last time.
    """

    def __init__(self) -> None:
        self.are_the_same = False
        self._latest: tuple[object, ...] = ()
        self._signature: Signature = ()
        self._inputs: list[Tensor] = []

    def look_at(self, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[Signature, list[Tensor]]:
        """Returns what must be equal of two calls of a layer to be recorded as one, and the tensors among them."""
        first: list[Tensor] = []
        parts = [*_parts(args[:1], first)]
        others = (*args[1:], *kwargs.values())
        self.are_the_same = len(others) == len(self._latest) and not any(map(is_not, others, self._latest))
        if not self.are_the_same:
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
                yield UNKNOWN
