"""The weights of a loaded model: mapped, written where they were mapped to, let go and taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headrace.errors import DiskSpaceError
from headrace.models.loaded_weights import WrittenWeights, fits_in_memory, map_loaded_weights
from headrace.models.weight_copies import groups_to_copy
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_weights_come_back_as_they_went(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_tiny_model(name, dtype=dtype)
    values = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = map_loaded_weights(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert not groups_to_copy(weights), "all of it can be streamed"
    written = WrittenWeights(model, weights, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == weights.parameters.keys() == values.keys() - weights.tied.keys()
    assert all(torch.equal(stored[key], values[key]) for key in stored)
    written.let_go()
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    written.take_back()
    assert all(torch.equal(tensor, values[key]) for key, tensor in model.state_dict().items())


def test_a_head_is_tied_where_it_has_the_embedding_s_own_tensor(tmp_path: Path) -> None:
    tied, untied = make_tiny_model("llama_tied"), make_tiny_model("llama_tied")
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    file = tmp_path / "model.safetensors"
    assert map_loaded_weights(tied, file).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert map_loaded_weights(untied, file).tied == {}


def test_a_folder_that_cannot_be_written_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("no folder")
    model, file = make_tiny_model("llama"), tmp_path / "taken" / "model.safetensors"
    with pytest.raises(DiskSpaceError, match="cannot write"):
        WrittenWeights(model, map_loaded_weights(model, file), file)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_looking_at_weights_ends_when_they_do_not_fit() -> None:
    model = make_tiny_model("llama")
    assert fits_in_memory(model, lambda: True)
    assert not fits_in_memory(model, lambda: False)
