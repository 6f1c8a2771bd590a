from __future__ import annotations

import pytest
from torch import nn

from headrace.errors import UnsupportedModelError
from headrace.models.layers import find_layers
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_the_decoder_layers_of_every_family_are_found(name: str) -> None:
    model = make_tiny_model(name)
    found = find_layers(model)
    assert len(found.layers) == model.config.num_hidden_layers
    assert model.get_submodule(found.prefix) is found.layers
    assert getattr(found.parent, found.attribute) is found.layers


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear: no list of decoder layers"):
        find_layers(nn.Linear(2, 2))
