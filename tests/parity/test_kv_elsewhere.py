"""KV on disk or on the host of a device, in all layers or some: the tokens are those of `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.kv_cache.stores import HostStore
from headrace.schedule.steps import serial_steps
from tests.parity.harness import (
    Rig,
    Row,
    Shape,
    crowded_rows,
    distinct_rows,
    generated,
    make_rig,
    sharing_rows,
    tiny_engine_model,
)
from tests.parity.placements import attention_layers, kv_elsewhere
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
WITH_ATTENTION = [name for name in TINY_CONFIGS if name != "mamba2"]


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
