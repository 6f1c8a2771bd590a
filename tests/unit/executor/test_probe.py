"""What sweeps take for themselves is measured within what the model can run."""

from __future__ import annotations

import pytest
import torch

from headrace.attention.grouped import GroupedAttention
from headrace.executor.probe import ActivationProbe
from tests.parity.harness import tiny_engine_model


def probe(name: str) -> ActivationProbe:
    return ActivationProbe(
        model=tiny_engine_model(name),
        attention=GroupedAttention(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        block_tokens=32,
    )


@pytest.mark.parametrize("name", ["opt", "llama", "qwen3_next", "mamba2"])
def test_sweeps_of_more_tokens_than_the_model_has_positions_are_measured(name: str) -> None:
    with torch.inference_mode():
        assert probe(name).peak_bytes(300, 4, 1000) > 0


def test_larger_sweeps_and_longer_contexts_take_more() -> None:
    with torch.inference_mode():
        small, large = probe("llama").peak_bytes(16, 4, 100), probe("llama").peak_bytes(16, 4, 100_000)
    assert large > small + 4 * 90_000
