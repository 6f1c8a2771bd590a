"""The places in a model's modules that a parameter's tensor is put into and taken out of."""

from __future__ import annotations

import torch
from torch import nn

from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import WeightMap


class ParameterPlaces:
    """Finds every parameter's modules once; made before stand-ins take the places of modules."""

    def __init__(self, model: PreTrainedModel, weight_map: WeightMap) -> None:
        names = (*weight_map.parameters, *weight_map.tied)
        self._places = {name: [_place(model, name)] for name in names}
        for name, source in weight_map.tied.items():
            self._places[source] += self._places[name]

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Puts `tensor` into the model under `name` and under the names that are tied to it."""
        parameter: nn.Parameter | None = None
        for module, attribute in self._places[name]:
            if attribute in module._buffers:
                module._buffers[attribute] = tensor
            else:
                parameter = parameter if parameter is not None else nn.Parameter(tensor, requires_grad=False)
                module._parameters[attribute] = parameter

    def take_out(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Puts a tensor without memory in the place of a parameter's."""
        self.put(name, torch.empty(shape, dtype=getattr(torch, dtype), device="meta"))


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module_name, _, attribute = name.rpartition(".")
    return model.get_submodule(module_name), attribute
