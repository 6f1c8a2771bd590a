"""Weights that stay, that are streamed, or both: the tokens are the same, sweep for sweep, for every family."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.engine.options import EngineOptions
from headrace.engine.placed_model import PlacedModel
from headrace.engine.streaming import hold_on_host, open_stream
from headrace.engine.tiers import open_tiers
from headrace.errors import SweepError
from headrace.models.observation import layer_table
from headrace.models.skeleton import build_skeleton
from headrace.models.weight_map import build_weight_map
from headrace.schedule.steps import Point, serial_steps
from tests.parity.harness import (
    Rig,
    Row,
    Shape,
    crowded_rows,
    distinct_rows,
    executor_of,
    generate_alone,
    generated,
    make_rig,
    sharing_rows,
)
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import save_tiny

ROWS = {"distinct": distinct_rows, "sharing": sharing_rows, "crowded": crowded_rows}
KEPT: dict[str, Callable[[list[Point]], list[Point]]] = {
    "nothing": lambda parts: [],
    "every other part": lambda parts: parts[::2],
    "all but the head": lambda parts: [part for part in parts if part.kind != "head"],
    "everything": lambda parts: parts,
}
SHAPES = {
    "one micro-batch": Shape(),
    "many micro-batches": Shape(num_micro_batches=3, sweep_tokens=23, block_tokens=4),
    "serial": Shape(num_micro_batches=2, sweep_tokens=64, schedule=serial_steps),
}


@contextmanager
def streamed(name: str, folder: Path, kept: str, device: str = "cpu") -> Iterator[PlacedModel]:
    save_tiny(name, folder / "model")
    with opened(folder, kept, device) as placed:
        yield placed


@contextmanager
def opened(folder: Path, kept: str, device: str = "cpu") -> Iterator[PlacedModel]:
    """Streams the model in `folder`/model; to a simulated device, half of it from the host and half from disk."""
    model = build_skeleton(folder / "model", torch.float32)
    weights = build_weight_map(model, Checkpoint.open(folder / "model"))
    options = EngineOptions(model="", device=device, memory_bytes=1 << 40, disk=str(folder / "copies"))
    with ExitStack() as closing:
        tiers = open_tiers(options, closing)
        placed = open_stream(model, layer_table(model.config), weights, tiers)
        closing.callback(placed.close)
        assert placed.streams is not None
        placed.streams.keep(KEPT[kept](list(placed.streams.parts.images)))
        hold_on_host(placed, tiers, 0.5, 0)
        yield placed


def rig_of(placed: PlacedModel, shape: Shape) -> Rig:
    rig = make_rig(placed.model, shape)
    inner = [point for point in placed.model.table.points() if point.kind in shape.waits and point.kind != "head"]
    heads = [point for point in placed.points if point.kind == "head"]
    rig.executor = replace(executor_of(rig), points=(*inner, *heads), weights=placed.weights, experts=placed.experts)
    return rig


def assert_same_tokens(name: str, rig: Rig, rows: list[Row]) -> None:
    expected = [generated(name, row.prompt, row.num_new) for row in rows for _ in range(row.num_samples)]
    assert rig.run(rows) == expected


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_streamed_weights_give_the_tokens_of_generate(name: str, tmp_path: Path) -> None:
    with streamed(name, tmp_path, "nothing") as placed:
        assert_same_tokens(name, rig_of(placed, SHAPES["many micro-batches"]), distinct_rows(every=2))


@pytest.mark.slow
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_tokens_do_not_depend_on_where_weights_are(name: str, rows: str, shape: str, kept: str, tmp_path: Path) -> None:
    chosen = replace(SHAPES[shape], scarce=rows == "crowded")
    with streamed(name, tmp_path, kept) as placed:
        assert_same_tokens(name, rig_of(placed, chosen), ROWS[rows](every=1))


@pytest.mark.parametrize("kept", ["nothing", "every other part"])
@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_weights_that_come_over_a_link_give_the_same_tokens(name: str, kept: str, tmp_path: Path) -> None:
    with streamed(name, tmp_path, kept, "simulated:1GiB,20GB/s") as placed:
        assert_same_tokens(name, rig_of(placed, SHAPES["many micro-batches"]), distinct_rows(every=2))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_head_larger_than_a_layer_comes_in_parts(is_tied: bool, kept: str, tmp_path: Path) -> None:
    config = LlamaConfig(**{**TINY_CONFIGS["llama"], "vocab_size": 3001, "tie_word_embeddings": is_tied})
    torch.manual_seed(0)
    reference = LlamaForCausalLM(config).eval()
    for parameter in reference.parameters():
        parameter.data.mul_(8)
    reference.save_pretrained(tmp_path / "model")
    rows = distinct_rows()
    with opened(tmp_path, kept) as placed:
        assert len([point for point in placed.points if point.kind == "head"]) == 7
        rig = rig_of(placed, SHAPES["many micro-batches"])
        assert rig.run(rows) == [generate_alone(reference, row.prompt, row.num_new) for row in rows]


def test_a_read_error_fails_the_sweep_and_the_next_one_goes_on(tmp_path: Path) -> None:
    rows = distinct_rows()
    with streamed("llama", tmp_path, "nothing") as placed:
        rig = rig_of(placed, SHAPES["many micro-batches"])
        assert_same_tokens("llama", rig, rows)
        file = next((tmp_path / "model").glob("*.safetensors"))
        content, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(SweepError, match="changed while it was in use"):
            for _ in range(3):  # what was read ahead is still whole
                rig_of(placed, SHAPES["one micro-batch"]).run(rows)
        file.write_bytes(content)
        os.utime(file, ns=times)
        assert_same_tokens("llama", rig_of(placed, SHAPES["one micro-batch"]), rows)


def test_no_thread_and_no_weight_stays_after_closing(tmp_path: Path) -> None:
    before = threading.active_count()
    with streamed("mixtral", tmp_path, "every other part") as placed:
        rig_of(placed, Shape()).run(distinct_rows())
        assert placed.streams is not None and placed.streams.layers.bytes_per_sweep > 0
    assert threading.active_count() == before
