"""Linear layers that multiply the same tokens do so in one call: queries, keys and values; gate and up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Generic, TypeVar

from torch import Tensor, nn

_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

Layer = TypeVar("Layer", bound=nn.Module)


class SharedInput(Generic[Layer]):
    """Layers of one module. The first that is called multiplies for all, the others find their results."""

    def __init__(self, layers: Sequence[Layer], multiply: Callable[[Tensor, Sequence[Layer]], list[Tensor]]) -> None:
        self._layers, self._multiply = layers, multiply
        self._is_shared = True
        self._input: Tensor | None = None
        self._results: dict[Layer, Tensor] = {}

    def forward(self, layer: Layer, input: Tensor) -> Tensor:  # torch's name
        """What `layer` makes of (..., inputs).

        A model whose layers do not all come for their results is not asked to multiply for others again.
        """
        if input is not self._input or layer not in self._results:
            self._is_shared &= not self._results
            layers = self._layers if self._is_shared else [layer]
            self._input, self._results = input, dict(zip(layers, self._multiply(input, layers), strict=True))
        result = self._results.pop(layer)
        if not self._results:
            self._input = None
        return result


def share_inputs(
    modules: Iterable[nn.Module],
    kind: type[Layer],
    multiply: Callable[[Tensor, Sequence[Layer]], list[Tensor]],
    alike: Callable[[Layer], object],
) -> None:
    """Gives layers of `kind` that belong together a `forward` that `multiply`s for all of them.

    Args:
        alike: layers go together of which this is equal.
    """
    for module in modules:
        for names in _TOGETHER:
            layers = [layer for name in names if type(layer := getattr(module, name, None)) is kind]
            if len(layers) == len(names) and len({alike(layer) for layer in layers}) == 1:
                shared = SharedInput(layers, multiply)
                for layer in layers:
                    layer.forward = partial(shared.forward, layer)
