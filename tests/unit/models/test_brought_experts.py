"""A model's own experts code runs on experts that lie anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headrace.models.brought_experts import BroughtExperts, find_experts
from tests.tiny_models import make_tiny_model


@pytest.mark.parametrize(
    ("name", "layers"), [("llama", []), ("mixtral", [0, 1, 2]), ("deepseek_v3", [1, 2]), ("qwen3_next", [0, 1, 2])]
)
def test_experts_are_found_in_the_layers_that_have_them(name: str, layers: list[int]) -> None:
    model = make_tiny_model(name)
    found = find_experts(model)
    assert sorted(found) == layers
    state = model.state_dict()
    for layer, experts in found.items():
        assert [parameter.rpartition(".")[2] for parameter in experts.parameters] == ["gate_up_proj", "down_proj"]
        assert all(state[parameter].shape[0] == 4 for parameter in experts.parameters)
        assert all(f".{layer}." in parameter for parameter in experts.parameters)


def brought(module: Any, experts: list[int]) -> BroughtExperts:
    return BroughtExperts(
        module,
        {
            index: {
                f"layers.0.mlp.experts.{name}": getattr(module, name)[index].clone()
                for name in ("gate_up_proj", "down_proj")
            }
            for index in experts
        },
    )


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2", "deepseek_v3", "qwen3_next"])
@torch.inference_mode()
def test_the_brought_experts_give_the_same_as_the_whole_module(name: str) -> None:
    module = find_experts(make_tiny_model(name))[1].module
    forward = type(module).forward.__wrapped__
    hidden, chosen, weights = torch.randn(5, 64), torch.tensor([[1, 3]] * 5), torch.rand(5, 2)
    assert torch.equal(
        forward(brought(module, [1, 3]), hidden, chosen, weights), forward(module, hidden, chosen, weights)
    )


@torch.inference_mode()
def test_an_expert_that_was_not_brought_is_an_error() -> None:
    module = find_experts(make_tiny_model("mixtral"))[0].module
    with pytest.raises(KeyError, match="3"):
        type(module).forward.__wrapped__(
            brought(module, [1]), torch.randn(1, 64), torch.tensor([[1, 3]]), torch.rand(1, 2)
        )
