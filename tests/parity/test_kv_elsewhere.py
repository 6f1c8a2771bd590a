"""KV on disk, in all layers or some, with or without streamed weights: the tokens are those of `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace.executor.kv_stream import lay_out, open_kv_stream
from headrace.executor.pools import build_pools
from headrace.models.layer_table import AttentionSpec, LayerTable
from headrace.schedule.steps import serial_steps
from headrace.storage.folders import DiskTier
from tests.parity.harness import (
    Rig,
    Row,
    Shape,
    crowded_rows,
    distinct_rows,
    executor_of,
    generated,
    make_rig,
    sharing_rows,
    tiny_engine_model,
)
from tests.tiny_models import TINY_CONFIGS

ROWS = {"distinct": distinct_rows, "sharing": sharing_rows, "crowded": crowded_rows}
ELSEWHERE: dict[str, Callable[[list[int]], list[int]]] = {
    "every layer": lambda layers: layers,
    "one layer": lambda layers: layers[-1:],
}
SHAPES = {
    "one micro-batch": Shape(),
    "many micro-batches": Shape(num_micro_batches=3, sweep_tokens=23, block_tokens=4),
    "serial": Shape(num_micro_batches=2, sweep_tokens=64, schedule=serial_steps),
}
WITH_ATTENTION = [name for name in TINY_CONFIGS if name != "mamba2"]


def attention_layers(table: LayerTable) -> list[int]:
    return [index for index, layer in enumerate(table.layers) if isinstance(layer.memory, AttentionSpec)]


@contextmanager
def kv_on_disk(rig: Rig, table: LayerTable, layers: list[int], shape: Shape, folder: Path) -> Iterator[None]:
    """Moves the KV of `layers` of a rig that has just been made to a file."""
    num_blocks = [pool.num_blocks for pool in rig.cache.pools]
    homes = lay_out(table, layers, num_blocks, shape.block_tokens, torch.float32)
    device = torch.device("cpu")
    stream = open_kv_stream(homes, num_blocks, disk=DiskTier(folder=folder), slab_blocks=max(num_blocks), device=device)
    executor = executor_of(rig)
    pools = build_pools(table, num_blocks, shape.block_tokens, torch.float32, device, frozenset(layers))
    executor.contexts.__dict__["_pools"] = pools
    rig.executor = replace(executor, kv=stream)
    try:
        yield
    finally:
        stream.close()


def assert_same_tokens(name: str, rig: Rig, rows: list[Row]) -> None:
    expected = [generated(name, row.prompt, row.num_new) for row in rows for _ in range(row.num_samples)]
    assert rig.run(rows) == expected


@pytest.mark.parametrize("rows", ["distinct", "sharing"])
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_kv_on_disk_gives_the_tokens_of_generate(name: str, rows: str, tmp_path: Path) -> None:
    model, shape = tiny_engine_model(name), SHAPES["many micro-batches"]
    rig = make_rig(model, shape)
    with kv_on_disk(rig, model.table, attention_layers(model.table), shape, tmp_path):
        assert_same_tokens(name, rig, ROWS[rows](every=1))


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_tokens_do_not_depend_on_where_kv_is(name: str, rows: str, shape: str, elsewhere: str, tmp_path: Path) -> None:
    model, chosen = tiny_engine_model(name), replace(SHAPES[shape], scarce=rows == "crowded")
    rig = make_rig(model, chosen)
    with kv_on_disk(rig, model.table, ELSEWHERE[elsewhere](attention_layers(model.table)), chosen, tmp_path):
        assert_same_tokens(name, rig, ROWS[rows](every=1))
