"""Layers whose calls are made again return, in every family, what they return themselves: bit for bit."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from headrace import LLM, SamplingParams
from headrace.attention.paged import best_attention
from headrace.engine.options import Quantization
from headrace.errors import SweepError
from headrace.executor.executor import Sampled
from headrace.kernels.library import library, usable
from headrace.models import recorded_layers
from headrace.models.architectures import EXACT
from headrace.models.products import LibraryProducts
from headrace.models.recorded_layers import MOST_TOKENS, RecordedLayer, arena_bytes, record_layers
from headrace.models.recording import Recording
from headrace.models.takeover import EngineModel
from headrace.models.wanted_tokens import LEAST_SAVED
from headrace.scheduler.sweep import Chunk
from tests.parity.harness import Row, Shape, crowded_rows, greedy, make_rig, sharing_rows, table_of
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

RECORDED = ("gemma2", "gemma3_text", "llama", "llama3_rope", "llama_tied", "mistral", "qwen2", "qwen3")
"""Families whose layers do nothing between calls that is not a view or a sum."""
PROMPTS = [[7, 8, 9], [11, 12, 13, 14, 15], [16], [17, 18]]
GREEDY = [SamplingParams(temperature=0, max_tokens=number, logprobs=1, ignore_eos=True) for number in (24, 9, 24, 14)]


def engine_model(name: str) -> EngineModel:
    model = make_tiny_model(name, dtype=torch.bfloat16)
    return EngineModel(model, table_of(model))


def found_library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


def products() -> LibraryProducts:
    return LibraryProducts(found_library())


def run(model: EngineModel, rows: Sequence[Row], shape: Shape) -> list[Tensor]:
    """Returns the logits of all sweeps."""
    logits: list[Tensor] = []

    def noting(of_sweep: Tensor, chunks: Sequence[Chunk]) -> Sampled:
        logits.append(of_sweep.clone())
        return greedy(of_sweep, chunks)

    make_rig(model, shape, torch.bfloat16).run(rows, sampler=noting)
    return logits


def turned(hidden: Tensor) -> Tensor:
    """The same numbers in another order of memory, which takes a copy where there is more than one token."""
    return hidden.transpose(1, 2).contiguous().transpose(1, 2)


def recordings(model: EngineModel) -> Iterator[Recording | None]:
    for layer in model.layers().values():
        forward = layer.forward.func if isinstance(layer.forward, partial) else layer.forward
        if isinstance(recorded := getattr(forward, "__self__", None), RecordedLayer):
            yield from recorded.recordings.values()


@pytest.mark.parametrize(
    "name", [*sorted(TINY_CONFIGS), *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(EXACT))]
)
def test_logits_are_the_same(name: str) -> None:
    model = engine_model(name)
    shape = Shape(attention=best_attention, products=products, waits=frozenset())
    rows = [*crowded_rows(every=2), *sharing_rows(every=3)]
    expected = run(model, rows, shape)
    record_layers(found_library(), model, arena_bytes(model, torch.bfloat16, MOST_TOKENS))
    for own, again in zip(expected, run(model, rows, shape), strict=True):
        assert torch.equal(own, again)
    found = list(recordings(model))
    if name in RECORDED:
        assert found and all(found)


def steady_rows(num_sweeps: int, prompt_tokens: int = 5) -> list[Row]:
    """Three rows that get one token in each sweep but the first."""
    return [Row(prompt=tuple(range(start, start + prompt_tokens)), num_new=num_sweeps) for start in (3, 30, 60)]


def followers(model: EngineModel) -> list[int]:
    """Returns with how many calls each layer is known to follow the one before."""
    return [len(layer.forward.__self__.following) for layer in model.layers().values()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["llama", "llama_tied", "mistral", "qwen3"])
def test_layers_that_follow_each_other_are_made_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine_model(name)
    shape = Shape(attention=best_attention, products=products, waits=frozenset())
    expected = run(model, steady_rows(8), shape)
    record_layers(found_library(), model, arena_bytes(model, torch.bfloat16, MOST_TOKENS))
    made: list[int] = []
    monkeypatch.setattr(Recording, "make", lambda self, own=Recording.make: (made.append(1), own(self))[1])
    for own, again in zip(expected, run(model, steady_rows(8), shape), strict=True):
        assert torch.equal(own, again)
    assert followers(model) == [0, *[1] * (len(followers(model)) - 1)]
    assert len(made) == 5, "of eight sweeps one has more tokens, one is not recorded yet, and one is"


def test_a_last_layer_that_knows_its_few_tokens_from_long_prompts_follows_the_others() -> None:
    model = engine_model("llama")
    shape = Shape(attention=best_attention, products=products, waits=frozenset())
    rows = steady_rows(8, prompt_tokens=LEAST_SAVED // 2)
    expected = run(model, rows, shape)
    record_layers(found_library(), model, arena_bytes(model, torch.bfloat16, MOST_TOKENS))
    for own, again in zip(expected, run(model, rows, shape), strict=True):
        assert torch.equal(own, again)
    assert followers(model) == [0, *[1] * (len(followers(model)) - 1)]


def test_layers_between_which_something_happens_are_made_one_by_one() -> None:
    model = engine_model("llama")
    shape = Shape(attention=best_attention, products=products, waits=frozenset())

    class Doubled(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
            return self.layer(hidden.mul_(2), *args, **kwargs)

    found = model.module.get_decoder().layers
    for index, layer in enumerate(found):
        found[index] = Doubled(layer)
    expected = run(model, steady_rows(8), shape)
    record_layers(found_library(), model, arena_bytes(model, torch.bfloat16, MOST_TOKENS))
    for own, again in zip(expected, run(model, steady_rows(8), shape), strict=True):
        assert torch.equal(own, again)
    assert any(recordings(model))
    assert not any(followers(model))


def test_a_model_that_does_something_else_between_layers_than_before_is_told() -> None:
    model = engine_model("llama")
    shape = Shape(attention=best_attention, products=products, waits=frozenset())
    record_layers(found_library(), model, arena_bytes(model, torch.bfloat16, MOST_TOKENS))
    last = model.module.get_decoder().layers[-1]
    own, num_sweeps = last.forward, 0

    def sampler(logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
        nonlocal num_sweeps
        num_sweeps += 1
        if num_sweeps == 5:
            last.forward = lambda hidden, *args, **kwargs: own(hidden * 2, *args, **kwargs)
        return greedy(logits, chunks)

    with pytest.raises(SweepError, match="given something else"):
        make_rig(model, shape, torch.bfloat16).run(steady_rows(8), sampler=sampler)
    assert num_sweeps == 5


def test_what_is_copied_is_not_taken_for_what_was_written_where_the_copy_lay() -> None:
    model = engine_model("llama")
    for layer in model.layers().values():
        norm = cast("nn.Module", layer.input_layernorm)
        norm.forward = lambda hidden, own=norm.forward: own(turned(hidden))
    record_layers(found_library(), model, arena_bytes(model, torch.bfloat16, MOST_TOKENS))
    run(model, crowded_rows(every=2), Shape(attention=best_attention, products=products, waits=frozenset()))
    recorded = [
        signature[0][0][1]  # type: ignore[index]
        for layer in model.layers().values()
        for signature, found in layer.forward.__self__.recordings.items()  # type: ignore[attr-defined]
        if found is not None
    ]
    assert set(recorded) == {1}


def test_a_layer_that_writes_more_than_there_is_memory_for_runs_as_it_is() -> None:
    model = engine_model("llama")
    shape = Shape(attention=best_attention, products=products, waits=frozenset())
    expected = run(model, crowded_rows(), shape)
    record_layers(found_library(), model, 1)
    assert all(torch.equal(own, again) for own, again in zip(expected, run(model, crowded_rows(), shape), strict=True))
    assert set(recordings(model)) == {None}


def test_a_layer_that_is_given_what_may_change_inside_runs_as_it_is() -> None:
    model = engine_model("llama")
    shape = Shape(attention=best_attention, products=products, waits=frozenset())
    record_layers(found_library(), model, arena_bytes(model, torch.bfloat16, MOST_TOKENS))
    for layer in model.layers().values():
        layer.forward = partial(layer.forward, notes={})
    run(model, crowded_rows(), shape)
    assert not list(recordings(model))


def test_other_pages_are_not_taken_for_those_that_were_recorded() -> None:
    model = engine_model("llama")
    shape = Shape(attention=best_attention, products=products, waits=frozenset())
    record_layers(found_library(), model, arena_bytes(model, torch.bfloat16, MOST_TOKENS))
    expected = run(model, crowded_rows(), shape)
    assert any(recordings(model))
    assert all(torch.equal(own, again) for own, again in zip(expected, run(model, crowded_rows(), shape), strict=True))


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_a_model_answers_the_same(demo_model: str, quantization: Quantization, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers() -> list[object]:
        with LLM(demo_model, memory="2GiB", quantization=quantization) as llm:
            outputs = llm.generate(PROMPTS, GREEDY)
            engine = llm._require_engine()
            num_recorded.append(sum(found is not None for found in recordings(engine.executor.model)))  # type: ignore[arg-type]
        return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]

    num_recorded: list[int] = []
    again = answers()
    monkeypatch.setattr(recorded_layers, "MOST_TOKENS", 0)
    assert again == answers()
    assert num_recorded[0] > num_recorded[1] == 0
