"""What only tokens whose logits are wanted go through gives them what it would give them among all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from headrace.attention.paged import best_attention
from headrace.executor.executor import Sampled
from headrace.kernels.library import library
from headrace.models import wanted_tokens
from headrace.models.architectures import EXACT
from headrace.models.products import LibraryProducts
from headrace.models.takeover import EngineModel
from headrace.scheduler.sweep import Chunk
from tests.parity.harness import Row, Shape, crowded_rows, greedy, make_rig, sharing_rows, table_of
from tests.tiny_configs import TINY_CONFIGS, VOCAB_SIZE
from tests.tiny_models import make_tiny_model

SAME_BITS = ("gemma2", "gemma3_text", "llama", "mistral", "mixtral", "opt", "qwen2", "qwen3")


def logits(model: EngineModel, rows: Sequence[Row]) -> list[Tensor]:
    """Returns those of all sweeps."""
    found: list[Tensor] = []

    def noting(of_sweep: Tensor, chunks: Sequence[Chunk]) -> Sampled:
        found.append(of_sweep.clone())
        return greedy(of_sweep, chunks)

    shape = Shape(attention=best_attention, sweep_tokens=40, products=products)
    make_rig(model, shape, torch.float32).run(rows, sampler=noting)
    return found


def prompt(num_tokens: int) -> tuple[int, ...]:
    return tuple(number % VOCAB_SIZE for number in range(num_tokens))


def products() -> LibraryProducts:
    found = library()
    assert found is not None
    return LibraryProducts(found)


@pytest.mark.parametrize(
    "name", [*sorted(TINY_CONFIGS), *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(EXACT))]
)
def test_logits_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make_tiny_model(name, dtype=torch.float32), [*crowded_rows(every=2), *sharing_rows(every=3)]
    engine_model = EngineModel(model, table_of(model))
    expected = logits(engine_model, rows)
    monkeypatch.setattr(wanted_tokens, "LEAST_SAVED", 1)
    for all_at_once, wanted in zip(expected, logits(engine_model, rows), strict=True):
        torch.testing.assert_close(wanted, all_at_once, rtol=1e-4, atol=1e-4)
        assert name not in SAME_BITS or torch.equal(wanted, all_at_once)


@pytest.mark.parametrize(("num_tokens", "seen"), [(100, [1, 1]), (60, [60, 1])])
def test_the_last_layer_goes_on_with_the_last_token_of_a_long_prompt(num_tokens: int, seen: list[int]) -> None:
    model = make_tiny_model("llama", dtype=torch.float32)
    engine_model, found = EngineModel(model, table_of(model)), {}
    for index, layer in engine_model.layers().items():
        widths = found.setdefault(index, [])
        layer.get_submodule("mlp").register_forward_pre_hook(lambda _, args, to=widths: to.append(args[0].shape[1]))
    make_rig(engine_model, Shape(), torch.float32).run([Row(prompt=prompt(num_tokens), num_new=2)])
    *others, last = found.values()
    assert last == seen
    assert all(widths == [num_tokens, 1] for widths in others)


def test_a_chunk_that_ends_before_its_prompt_leaves_its_keys_and_values() -> None:
    model = make_tiny_model("llama", dtype=torch.float32)
    row = Row(prompt=prompt(200), num_new=4)
    engine_model = EngineModel(model, table_of(model))
    expected = make_rig(engine_model, Shape(), torch.float32).run([row])
    assert make_rig(engine_model, Shape(sweep_tokens=90), torch.float32).run([row]) == expected
