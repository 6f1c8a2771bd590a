"""The weights of a model that is in memory already: what they are, and their way to the disk where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from headrace.checkpoint.gather import Gather
from headrace.checkpoint.safetensors_writer import planned_entries
from headrace.models.parameter_places import ParameterPlaces
from headrace.models.safetensors_file import tensor_shape, write_tensors
from headrace.models.transformers_api import ForeignModule, PreTrainedModel
from headrace.models.weight_map import WeightMap, assemble_weight_map
from headrace.models.weights import WeightLoader
from headrace.storage.aligned import PAGE_BYTES
from headrace.units import MIB

_TOUCHED_BYTES = 64 * MIB
"""Of weights between two looks at memory."""


def map_loaded_weights(model: PreTrainedModel, file: Path) -> WeightMap:
    """Describes the weights of `model`, and where `file` will have them if they are written there; writes nothing."""
    tensors = _state(model)
    tied = _tied_to_embedding(model, tensors)
    own = {name: tensor for name, tensor in tensors.items() if name not in tied}
    entries = planned_entries(file, (tensor_shape(name, tensor) for name, tensor in own.items()))
    return assemble_weight_map(model, own, {entry.name: Gather.whole(entry) for entry in entries}, tied, ())


def fits_in_memory(model: PreTrainedModel, fits: Callable[[], bool]) -> bool:
    """Reads a byte of each page of the weights, and returns whether `fits` was true all the while.

    `from_pretrained` maps files, whose pages are in memory only once they were looked at. Stops when `fits` is false.
    """
    num_touched = 0
    for tensor in _state(model).values():
        for piece in torch.split(tensor.detach().reshape(-1).view(torch.uint8), _TOUCHED_BYTES):
            piece[::PAGE_BYTES].sum()
            num_touched += piece.numel()
            if num_touched >= _TOUCHED_BYTES:
                num_touched = 0
                if not fits():
                    return False
    return fits()


class WrittenWeights:
    """The weights of a model in a file of their own; they are in the model, too, until they are let go."""

    def __init__(self, model: PreTrainedModel, weights: WeightMap, file: Path) -> None:
        """Writes the file that `weights` were mapped to.

        Raises:
            DiskSpaceError: it cannot be written; the model is as it was.
        """
        tensors = _state(model)
        write_tensors(file, {name: tensors[name] for name in weights.parameters})
        self._model, self._weights = model, weights
        self._places = ParameterPlaces(model, weights)  # before stand-ins take the places of modules

    def let_go(self) -> None:
        """Frees the memory of the model's weights."""
        for source in self._weights.parameters.values():
            self._places.take_out(source.name, source.shape, source.dtype)

    def take_back(self) -> None:
        """Reads all weights into the model again."""
        with WeightLoader(self._model, self._weights, places=self._places) as loader:
            loader.load_all()


def _state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All parameters and persistent buffers, tied ones under each of their names."""
    return dict(model.state_dict(keep_vars=True))


def _tied_to_embedding(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Which names share the embedding's matrix. Others that share a tensor are streamed as if each had its own."""
    embedding: ForeignModule = model.get_input_embeddings()
    names = [name for name, tensor in tensors.items() if tensor is embedding.weight]
    prefix = next(name for name, module in model.named_modules() if module is embedding)
    first = next(name for name in names if name.startswith(f"{prefix}."))
    return {name: first for name in names if name != first}
