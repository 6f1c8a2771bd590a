"""KV on disk or on the host of a device, in all layers or some: the tokens are those of `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace.executor.kv_homes import AttendsAtHome, lay_out
from headrace.executor.kv_stream import KVStream
from headrace.executor.pools import build_pools
from headrace.kv_cache.stores import FileBehindLink, FileStore, HostStore, KVStore
from headrace.models.layer_table import AttentionSpec, LayerTable
from headrace.schedule.steps import serial_steps
from headrace.storage.aligned import AlignedBuffer
from headrace.storage.cuda_link import CudaLink
from headrace.storage.folders import DiskTier
from headrace.storage.link import Link
from headrace.storage.scratch_file import ScratchFile
from headrace.storage.simulated_device import SimulatedDevice, SimulatedLink
from tests.late_runtime import LateRuntime
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
from tests.tiny_configs import TINY_CONFIGS

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
AT_HOME: dict[str, AttendsAtHome] = {
    "always": lambda home, chunks, blocks: True,
    "at times": lambda home, chunks, blocks: (home.offset + len(chunks) + len(blocks.blocks)) % 2 == 0,
    "never": lambda home, chunks, blocks: False,
}
WITH_ATTENTION = [name for name in TINY_CONFIGS if name != "mamba2"]


def attention_layers(table: LayerTable) -> list[int]:
    return [index for index, layer in enumerate(table.layers) if isinstance(layer.memory, AttentionSpec)]


@contextmanager
def kv_elsewhere(
    rig: Rig,
    table: LayerTable,
    layers: list[int],
    shape: Shape,
    folder: Path,
    tier: str = "disk",
    at_home: str = "never",
) -> Iterator[None]:
    """Moves the KV of `layers` of a rig that has just been made to another tier, below memory or below a device."""
    num_blocks = [pool.num_blocks for pool in rig.cache.pools]
    device = torch.device("cpu")

    link: Link = (
        CudaLink(LateRuntime())
        if "late" in tier
        else SimulatedLink(SimulatedDevice(memory_bytes=1 << 30, bytes_per_second=2e10))
    )

    def open_store(num_bytes: int, is_aligned: bool) -> KVStore:
        if "host" in tier:
            return HostStore(link, num_bytes)
        file = ScratchFile(DiskTier(folder=folder), what="KV cache", num_bytes=num_bytes, is_aligned=is_aligned)
        return FileStore(file) if tier == "disk" else FileBehindLink(file, link)

    homes = lay_out(table, layers, num_blocks, shape.block_tokens, torch.float32, open_store)
    allocate = AlignedBuffer if tier == "disk" else link.device_memory
    stream = KVStream(
        homes, slab_blocks=max(num_blocks), device=device, allocate=allocate, attends_at_home=AT_HOME[at_home]
    )
    executor = executor_of(rig)
    pools = build_pools(table, num_blocks, shape.block_tokens, torch.float32, device, frozenset(layers))
    executor.contexts.__dict__["_pools"] = pools
    rig.executor = replace(executor, kv=stream)
    try:
        yield
    finally:
        stream.close()
        link.close()


def assert_same_tokens(name: str, rig: Rig, rows: list[Row]) -> None:
    expected = [generated(name, row.prompt, row.num_new) for row in rows for _ in range(row.num_samples)]
    assert rig.run(rows) == expected


@pytest.mark.parametrize(
    ("rows", "tier"),
    [
        ("distinct", "disk"),
        ("sharing", "host of a simulated device"),
        ("sharing", "host of a late device"),
        ("sharing", "disk below a late device"),
    ],
)
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_kv_elsewhere_gives_the_tokens_of_generate(name: str, rows: str, tier: str, tmp_path: Path) -> None:
    model, shape = tiny_engine_model(name), SHAPES["many micro-batches"]
    rig = make_rig(model, shape)
    with kv_elsewhere(rig, model.table, attention_layers(model.table), shape, tmp_path, tier):
        assert_same_tokens(name, rig, ROWS[rows](every=1))


@pytest.mark.parametrize("at_home", ["always", "at times"])
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_the_host_attends_over_its_kv_to_the_tokens_of_generate(name: str, at_home: str, tmp_path: Path) -> None:
    model, shape = tiny_engine_model(name), SHAPES["many micro-batches"]
    rig = make_rig(model, shape)
    layers, tier = attention_layers(model.table), "host of a late device"
    with kv_elsewhere(rig, model.table, layers, shape, tmp_path, tier, at_home):
        assert_same_tokens(name, rig, ROWS["sharing"](every=1))


def test_nothing_is_brought_where_the_host_attends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[str] = []
    monkeypatch.setattr(HostStore, "read", lambda store, what, slab, pieces: brought.append(what))
    model, shape = tiny_engine_model("llama"), SHAPES["many micro-batches"]
    rig = make_rig(model, shape)
    layers, tier = attention_layers(model.table), "host of a late device"
    with kv_elsewhere(rig, model.table, layers, shape, tmp_path, tier, "always"):
        assert_same_tokens("llama", rig, ROWS["distinct"](every=1))
    assert not brought


@pytest.mark.slow
@pytest.mark.parametrize("at_home", ["always", "at times"])
@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_tokens_do_not_depend_on_who_attends(
    name: str, rows: str, shape: str, elsewhere: str, at_home: str, tmp_path: Path
) -> None:
    model, chosen = tiny_engine_model(name), replace(SHAPES[shape], scarce=rows == "crowded")
    rig = make_rig(model, chosen)
    layers, tier = ELSEWHERE[elsewhere](attention_layers(model.table)), "host of a late device"
    with kv_elsewhere(rig, model.table, layers, chosen, tmp_path, tier, at_home):
        assert_same_tokens(name, rig, ROWS[rows](every=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "tier", ["disk", "host of a simulated device", "host of a late device", "disk below a late device"]
)
@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_tokens_do_not_depend_on_where_kv_is(
    name: str, rows: str, shape: str, elsewhere: str, tier: str, tmp_path: Path
) -> None:
    model, chosen = tiny_engine_model(name), replace(SHAPES[shape], scarce=rows == "crowded")
    rig = make_rig(model, chosen)
    with kv_elsewhere(rig, model.table, ELSEWHERE[elsewhere](attention_layers(model.table)), chosen, tmp_path, tier):
        assert_same_tokens(name, rig, ROWS[rows](every=1))
