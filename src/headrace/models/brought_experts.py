"""A mixture of experts whose weights lie expert by expert wherever there was room, under the model's own code.

transformers' experts modules hold merged parameters (number of experts, ...) and their own code indexes them with one
expert after another, only those that tokens go to. So a table of these will do in the place of a merged parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from headrace.models.layers import find_layers
from headrace.models.transformers_api import ForeignModule, PreTrainedModel

ExpertTensors = Mapping[int, Mapping[str, Tensor]]
"""Number of an expert -> full name of a merged parameter -> that expert's part of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundExperts:
    """A layer's experts module.

    Attributes:
        parameters: full names of its merged parameters.
    """

    module: ForeignModule
    parameters: tuple[str, ...]


def find_experts(model: PreTrainedModel) -> dict[int, FoundExperts]:
    """Returns the experts module of every layer that has one; before stand-ins take the places of modules."""
    layers, found = find_layers(model), {}
    for index, layer in enumerate(layers.layers):
        module: ForeignModule
        for name, module in layer.named_modules():
            if hasattr(type(module).forward, "__wrapped__") and hasattr(module, "_apply_gate"):
                own = module.named_parameters(recurse=False)
                names = [attribute for attribute, value in own if value.shape[0] == module.num_experts]
                prefix = f"{layers.prefix}.{index}.{name}"
                found[index] = FoundExperts(
                    module=module, parameters=tuple(f"{prefix}.{attribute}" for attribute in names)
                )
    return found


class BroughtExperts:
    """In the place of an experts module in its own forward: its merged parameters hold the brought experts alone.

    Everything else is the module's. An expert that was not brought raises KeyError.
    """

    def __init__(self, module: ForeignModule, experts: ExpertTensors) -> None:
        self._module = module
        for name in next(iter(experts.values()), {}):
            table = _Table({index: tensors[name] for index, tensors in experts.items()})
            setattr(self, name.rpartition(".")[2], table)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


class _Table:
    """A merged parameter of which only some experts' parts are there."""

    def __init__(self, parts: Mapping[int, Tensor]) -> None:
        self._parts = parts

    def __getitem__(self, expert: Tensor) -> Tensor:
        return self._parts[int(expert)]
