"""A model that was taken over waits at every point of its table, keeps its weights, and leaves other models alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headrace.executor.executor import Sampled
from headrace.models.layers import find_layers
from headrace.models.micro_batch import MicroBatchContext
from headrace.models.observation import layer_table
from headrace.models.takeover import EngineModel
from headrace.sampling.tokens import SampledToken
from headrace.schedule.steps import Point, Resume, Step
from headrace.scheduler.sweep import Chunk
from tests.parity.harness import Row, Shape, executor_of, generate_alone, make_prompt, make_rig, tiny_engine_model
from tests.tiny_configs import TINY_CONFIGS, VOCAB_SIZE
from tests.tiny_models import make_tiny_model

FAMILIES = sorted(TINY_CONFIGS)
ROWS = [Row(prompt=make_prompt(5), num_new=2), Row(prompt=make_prompt(9), num_new=2)]


def takeover(model: PreTrainedModel) -> EngineModel:
    return EngineModel(model, layer_table(model.config))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_micro_batch_reaches_exactly_the_points_of_the_table(name: str) -> None:
    passed: list[Point] = []

    def watched(points: Sequence[Point], num_micro_batches: int) -> Iterator[Step]:
        assert num_micro_batches == 1
        for point in points:
            passed.append(point)
            yield Resume(0, point)  # the executor checks that it waits there

    model = tiny_engine_model(name)
    make_rig(model, Shape(schedule=watched)).run([Row(prompt=make_prompt(5), num_new=1)])
    assert passed == model.table.points()


@pytest.mark.parametrize("name", FAMILIES)
def test_taking_over_neither_copies_nor_changes_weights(name: str) -> None:
    model, untouched = make_tiny_model(name), make_tiny_model(name)
    places = {id(parameter): key for key, parameter in model.named_parameters()}
    engine_model = takeover(model)
    make_rig(engine_model, Shape()).run(ROWS)
    found = {places[id(parameter)]: parameter for parameter in all_parameters(engine_model.module)}
    assert found.keys() == dict(untouched.named_parameters()).keys()
    assert all(parameter.equal(found[key]) for key, parameter in untouched.named_parameters())


def all_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Those of a taken-over model, the ones behind stand-ins included."""
    for part in module.modules():
        yield from part.parameters(recurse=False)
        if "real" in vars(part):
            yield from all_parameters(vars(part)["real"])


@pytest.mark.parametrize("name", ["llama", "bloom", "mixtral", "deepseek_v3", "qwen3_next", "mamba2"])
def test_other_models_of_the_class_stay_as_transformers_made_them(name: str) -> None:
    before = make_tiny_model(name)
    expected = generate_alone(before, ROWS[0].prompt, 4)
    takeover(make_tiny_model(name))
    assert generate_alone(before, ROWS[0].prompt, 4) == expected
    assert generate_alone(make_tiny_model(name), ROWS[0].prompt, 4) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_two_taken_over_models_do_not_disturb_each_other(name: str) -> None:
    seeds = [make_tiny_model(name, seed) for seed in (1, 2)]
    expected = [[generate_alone(model, row.prompt, row.num_new) for row in ROWS] for model in seeds]
    rigs = [make_rig(takeover(model), Shape()) for model in seeds]
    assert [rig.run(ROWS) for rig in rigs] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_computed_for_the_wanted_tokens_alone(name: str) -> None:
    shapes: list[tuple[int, ...]] = []

    def watch(logits: Tensor, chunks: Sequence[Chunk]) -> Sampled:
        shapes.append(tuple(logits.shape))
        return {chunk.sequence_id: [SampledToken(token_id=1)] for chunk in chunks}

    make_rig(tiny_engine_model(name), Shape(sweep_tokens=7)).run(ROWS, watch)
    # 5 + 2 prompt tokens, the first row's next one + 6, the second row's last prompt token, its next one.
    assert shapes == [(1, VOCAB_SIZE)] * 4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_skipped_layer_hands_on_its_input(name: str) -> None:
    model = tiny_engine_model(name)
    num_layers = len(model.table.layers)
    states: dict[int, Tensor] = {}

    def run(skipped: frozenset[int]) -> None:
        rig = make_rig(model, Shape(waits=frozenset({"embedding"})))  # as probes do: skipped layers are not reached
        contexts = executor_of(rig).contexts

        class Skipping(type(contexts)):  # type: ignore[misc]
            def build(self, micro_batch: object, waits: object) -> MicroBatchContext:
                return replace(super().build(micro_batch, waits), skipped_layers=skipped)

        contexts.__class__ = Skipping
        rig.run([Row(prompt=make_prompt(5), num_new=1)])

    run(frozenset())  # shows what layers return
    hooks = [
        vars(layer)["real"].register_forward_pre_hook(
            lambda _, args, kwargs, index=index: states.update({index: args[0] if args else kwargs["hidden_states"]}),
            with_kwargs=True,
        )
        for index, layer in enumerate(find_layers(model.module).layers)
    ]
    try:
        run(frozenset({0}))
        assert sorted(states) == list(range(1, num_layers))
        after_skipping = states[1]
        states.clear()
        run(frozenset(range(1, num_layers)))
        assert sorted(states) == [0]
    finally:
        for hook in hooks:
            hook.remove()
    assert after_skipping.equal(states[0])


def test_stand_ins_show_the_attributes_of_what_they_stand_for() -> None:
    model = tiny_engine_model("gemma3_text").module
    layers = find_layers(model).layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2]
    assert model.get_input_embeddings().weight.shape == (VOCAB_SIZE, 64)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_model_runs_in_evaluation_mode() -> None:
    model = make_tiny_model("opt").train()
    layers = find_layers(takeover(model).module).layers
    assert not any(part.training for layer in layers for part in vars(layer)["real"].modules())


def test_a_taken_over_model_keeps_nothing_of_what_it_ran() -> None:
    model = tiny_engine_model("llama")
    make_rig(model, Shape()).run(ROWS)
    kept = [value for part in model.module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    assert not kept
    assert not torch.is_inference_mode_enabled()
