"""Finds the decoder layers of a transformers model without knowing its architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from headrace.errors import UnsupportedModelError
from headrace.models.transformers_api import Conv1D

_READ_OTHERWISE = ("kv_b_proj",)
"""Layers that are never called: latent attention takes their weight apart."""


@dataclass(frozen=True, slots=True)
class DecoderLayers:
    """The list of a model's decoder layers and its place.

    Attributes:
        parent: the module that holds the list.
        attribute: the list's name in `parent`.
        layers: the list itself.
        prefix: the list's full name in the model, such as `model.layers`.
    """

    parent: nn.Module
    attribute: str
    layers: nn.ModuleList
    prefix: str


def find_layers(model: nn.Module) -> DecoderLayers:
    """Returns the largest list of modules whose class the model itself, or its name, calls a layer or block.

    Raises:
        UnsupportedModelError: there is no such list.
    """
    unsplit = set(getattr(model, "_no_split_modules", None) or ())
    candidates = [
        DecoderLayers(parent=parent, attribute=attribute, layers=child, prefix=f"{parent_name}.{attribute}".lstrip("."))
        for parent_name, parent in model.named_modules()
        for attribute, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) > 0 and _is_layer(child[0], unsplit)
    ]
    if not candidates:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no list of decoder layers found; expected a ModuleList of layers or blocks; "
            "this architecture cannot be run"
        )
    return max(candidates, key=lambda found: sum(parameter.numel() for parameter in found.layers.parameters()))


def linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Yields the linear layers within decoder layers that are called, by name."""
    prefix = find_layers(model).prefix + "."
    for name, module in model.named_modules():
        if name.startswith(prefix) and type(module) in (nn.Linear, Conv1D) and not name.endswith(_READ_OTHERWISE):
            yield name, module


def _is_layer(module: nn.Module, unsplit: set[str]) -> bool:
    name = type(module).__name__
    return name in unsplit or "Layer" in name or "Block" in name
