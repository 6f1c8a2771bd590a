"""A parameter is put into every module that uses it, and taken out of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.models.parameter_places import ParameterPlaces
from headrace.models.skeleton import build_skeleton
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import WeightMap, build_weight_map
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import save_tiny


def skeleton(name: str, folder: Path) -> tuple[PreTrainedModel, WeightMap]:
    save_tiny(name, folder)
    model = build_skeleton(folder, torch.float32)
    return model, build_weight_map(model, Checkpoint.open(folder))


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_every_parameter_has_a_place_and_is_without_memory_once_it_is_taken_out(name: str, tmp_path: Path) -> None:
    model, weights = skeleton(name, tmp_path)
    places = ParameterPlaces(model, weights)
    values = {key: torch.randn(source.shape) for key, source in weights.parameters.items()}
    for key, value in values.items():
        places.put(key, value.to(getattr(torch, weights.parameters[key].dtype)))
    state = model.state_dict()
    assert all(not tensor.is_meta for tensor in state.values())
    assert all(torch.equal(state[key].float(), value) for key, value in values.items())
    for key, source in weights.parameters.items():
        places.take_out(key, source.shape, source.dtype)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {
        key: tensor.shape for key, tensor in state.items()
    }


def test_tied_names_share_one_tensor(tmp_path: Path) -> None:
    model, weights = skeleton("llama_tied", tmp_path)
    ((tied, source),) = weights.tied.items()
    places = ParameterPlaces(model, weights)
    places.put(source, torch.ones(weights.parameters[source].shape))
    assert model.get_parameter(tied) is model.get_parameter(source)
    assert torch.equal(model.get_parameter(tied), torch.ones(weights.parameters[source].shape))


def test_a_tied_name_alone_can_be_given_another_tensor(tmp_path: Path) -> None:
    model, weights = skeleton("llama_tied", tmp_path)
    ((tied, source),) = weights.tied.items()
    places = ParameterPlaces(model, weights)
    places.put(source, torch.ones(3, 2))
    places.put(tied, torch.zeros(5, 2))
    assert model.get_parameter(source).shape == (3, 2)
    assert model.get_parameter(tied).shape == (5, 2)


def test_a_buffer_stays_a_buffer(tmp_path: Path) -> None:
    model, weights = skeleton("deepseek_v3", tmp_path)
    names = dict(model.named_buffers()).keys() & weights.parameters.keys()
    assert names
    places = ParameterPlaces(model, weights)
    for name in names:
        places.put(name, torch.ones(weights.parameters[name].shape))
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], torch.ones_like(buffers[name])) for name in names)


def test_places_are_found_before_modules_are_replaced(tmp_path: Path) -> None:
    model, weights = skeleton("llama", tmp_path)
    places = ParameterPlaces(model, weights)
    (source,) = weights.in_group("embedding")
    own = model.get_input_embeddings()
    model.set_input_embeddings(torch.nn.Identity())
    places.put(source.name, torch.ones(source.shape))
    assert torch.equal(own.weight, torch.ones(source.shape))
