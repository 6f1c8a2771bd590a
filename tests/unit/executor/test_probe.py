"""What sweeps take for themselves is measured within what the model can run."""

from __future__ import annotations

import pytest
import torch

from headrace.attention.grouped import GroupedAttention
from headrace.executor.probe import WEIGHT_POINTS, ActivationProbe
from tests.parity.harness import tiny_engine_model


def probe(name: str) -> ActivationProbe:
    model = tiny_engine_model(name)
    return ActivationProbe(
        model=model,
        points=[point for point in model.table.points() if point.kind in WEIGHT_POINTS],
        attention=GroupedAttention(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        block_tokens=32,
    )


@pytest.mark.parametrize("name", ["opt", "llama", "qwen3_next", "mamba2"])
def test_sweeps_of_more_tokens_than_the_model_has_positions_are_measured(name: str) -> None:
    with torch.inference_mode():
        assert probe(name).measure(300, 4).at(1000) > 0


def test_longer_contexts_take_more() -> None:
    with torch.inference_mode():
        peak = probe("llama").measure(16, 4)
    assert peak.at(100_000) > peak.at(100) + 4 * 90_000
