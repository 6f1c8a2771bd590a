"""Which layers a model calls one right after the other, doing nothing else between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.models.call_signatures import Signature
from headrace.models.micro_batch import current


class _Returned(NamedTuple):
    """A layer's result, what the layer was called with, and the number of operations seen until then."""

    result: object
    signature: Signature
    num_operations: int


class Neighbours:
    """Watches single forwards of a model."""

    def __init__(self, model: nn.Module) -> None:
        """Gives `model` a forward that can be watched."""
        self._own, self._num_tokens, self._are_asked_for = model.forward, 0, False
        self._watch: _Watch | None = None
        self._returned: _Returned | None = None
        model.forward = self._forward

    def ask(self) -> None:
        """Has the next forward watched, if it has as many tokens as this one."""
        self._are_asked_for = True

    def note(self, result: object, signature: Signature) -> None:
        """A layer returns."""
        if self._watch is not None:
            self._returned = _Returned(result, signature, self._watch.num_operations)

    def are_next(self, given: object, signature: Signature) -> bool:
        """Whether a layer is seen to be called with what the latest one returned, and nothing was done meanwhile."""
        return (
            self._watch is not None
            and self._returned is not None
            and given is self._returned.result
            and (self._returned[1:] == (signature, self._watch.num_operations))
        )

    def _forward(self, *args: object, **kwargs: object) -> object:
        num_tokens, are_asked_for = current().token_ids.shape[1], self._are_asked_for
        is_watched = are_asked_for and num_tokens == self._num_tokens
        self._num_tokens, self._are_asked_for = num_tokens, False
        if not is_watched:
            return self._own(*args, **kwargs)
        try:
            with _Watch() as self._watch:
                return self._own(*args, **kwargs)
        finally:
            self._watch = self._returned = None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations, views among them, while entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = 0

    def __torch_dispatch__(
        self,
        function: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        self.num_operations += 1
        return function(*args, **(kwargs or {}))
