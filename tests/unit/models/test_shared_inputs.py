"""Layers that share an input multiply once, and only where the model calls them all with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headrace.models.shared_inputs import share_inputs


class Attention(nn.Module):
    def __init__(self, value_width: int = 8) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 16), nn.Linear(8, 4), nn.Linear(value_width, 4)


class Calls:
    """Multiplies, and counts for how many layers each time."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, tokens: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
        self.counts.append(len(layers))
        return [nn.functional.linear(tokens, layer.weight, layer.bias) for layer in layers]


def shared(module: nn.Module) -> Calls:
    calls = Calls()
    share_inputs(module.modules(), nn.Linear, calls, lambda layer: layer.in_features)
    return calls


def plain(layer: nn.Linear, tokens: Tensor) -> Tensor:
    return nn.functional.linear(tokens, layer.weight, layer.bias)


def test_one_call_serves_queries_keys_and_values_in_any_order() -> None:
    module = Attention()
    calls = shared(module)
    for names in (("q_proj", "k_proj", "v_proj"), ("v_proj", "q_proj", "k_proj")):
        tokens = torch.randn(3, 8)
        for name in names:
            layer = getattr(module, name)
            assert torch.equal(layer(tokens), plain(layer, tokens))
    assert calls.counts == [3, 3]


def test_equal_tokens_in_another_tensor_are_multiplied_again() -> None:
    module, tokens = Attention(), torch.randn(3, 8)
    calls = shared(module)
    assert torch.equal(module.q_proj(tokens), plain(module.q_proj, tokens))
    other = tokens + 1
    assert torch.equal(module.k_proj(other), plain(module.k_proj, other))
    assert calls.counts[1] == 1


def test_after_a_call_that_did_not_come_each_multiplies_for_itself() -> None:
    module = Attention()
    calls = shared(module)
    for _ in range(3):
        module.q_proj(torch.randn(3, 8))
    assert calls.counts == [3, 1, 1]


def test_the_same_layer_twice_is_multiplied_twice() -> None:
    module, tokens = Attention(), torch.randn(3, 8)
    shared(module)
    for _ in range(2):
        assert torch.equal(module.q_proj(tokens), plain(module.q_proj, tokens))


def test_layers_of_other_inputs_or_other_kinds_stay_apart() -> None:
    for module in (Attention(value_width=6), nn.Linear(8, 8)):
        assert not shared(module).counts
    module = Attention()
    module.k_proj = nn.Sequential(nn.Linear(8, 4))  # type: ignore[assignment]
    calls = shared(module)
    module.q_proj(torch.randn(3, 8))
    assert calls.counts == []
