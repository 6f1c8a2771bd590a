"""Activations of waiting micro-batches on the host of a device: the tokens are those of `generate`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from headrace.executor.activations import ActivationsBelow
from headrace.schedule.steps import serial_steps
from headrace.storage.cuda_link import CudaLink
from headrace.storage.link import Buffer, Link, Part
from headrace.storage.simulated_device import SimulatedDevice, SimulatedLink
from headrace.storage.transfer import Transfer
from tests.late_runtime import LateRuntime
from tests.parity.harness import (
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
from tests.unit.executor.orders import Regrouped, falling_behind, last_first

ROWS: dict[str, Callable[..., list[Row]]] = {
    "distinct": distinct_rows,
    "sharing": sharing_rows,
    "crowded": crowded_rows,
}
SHAPES = {
    "two micro-batches": Shape(num_micro_batches=2, sweep_tokens=64),
    "many micro-batches": Shape(num_micro_batches=6, sweep_tokens=48, block_tokens=4),
    "only layers wait": Shape(num_micro_batches=5, waits=frozenset({"layer"})),
    "serial": Shape(num_micro_batches=3, sweep_tokens=64, schedule=serial_steps),
}
BYTES_PER_TOKEN = 16 * 64
FEW = ("gemma3_text", "qwen3_next")


class NotingLink(SimulatedLink):
    """A link that also remembers what came back over it."""

    def __init__(self) -> None:
        super().__init__(SimulatedDevice(memory_bytes=1 << 30, bytes_per_second=2e10))
        self.brought: list[str] = []

    def upload(self, what: str, target: Buffer, parts: Sequence[Part], *args: object, **kwargs: object) -> Transfer:
        self.brought.append(what)
        return super().upload(what, target, parts, *args, **kwargs)  # type: ignore[arg-type]


def assert_same_tokens(
    name: str, shape: Shape, rows: Sequence[Row], link: Link, share_on_device: float = 0.0, *, regrouped: bool = False
) -> None:
    rig = make_rig(tiny_engine_model(name), shape)
    below = ActivationsBelow(
        link,
        slot_bytes=shape.sweep_tokens * BYTES_PER_TOKEN,
        host_bytes=shape.sweep_tokens * BYTES_PER_TOKEN,
        share_on_device=share_on_device,
    )
    executor = replace(executor_of(rig), activations=below)
    rig.executor = Regrouped(executor, random.Random(1)) if regrouped else executor
    try:
        expected = [generated(name, row.prompt, row.num_new) for row in rows for _ in range(row.num_samples)]
        assert rig.run(rows) == expected
    finally:
        below.close()
        link.close()


@pytest.mark.parametrize("device", ["simulated", "late"])
@pytest.mark.parametrize("name", sorted(TINY_CONFIGS))
def test_activations_below_give_the_tokens_of_generate(name: str, device: str) -> None:
    link = NotingLink() if device == "simulated" else CudaLink(LateRuntime())
    assert_same_tokens(name, SHAPES["many micro-batches"], sharing_rows(every=1), link)
    if isinstance(link, NotingLink):
        assert {f"activations of micro-batch {number}" for number in range(5)} <= set(link.brought)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["simulated", "late"])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", sorted(TINY_CONFIGS))
def test_tokens_do_not_depend_on_where_activations_wait(
    name: str, rows: str, shape: str, share: float, device: str
) -> None:
    link = NotingLink() if device == "simulated" else CudaLink(LateRuntime())
    chosen = replace(SHAPES[shape], scarce=rows == "crowded")
    assert_same_tokens(name, chosen, ROWS[rows](every=1), link, share)


@pytest.mark.parametrize("schedule", [last_first, falling_behind])
@pytest.mark.parametrize("name", FEW)
def test_turns_may_come_in_any_order(name: str, schedule: object) -> None:
    shape = replace(SHAPES["many micro-batches"], schedule=schedule, shares_prefixes=False)  # type: ignore[arg-type]
    assert_same_tokens(name, shape, distinct_rows(), NotingLink(), regrouped=True)


def test_a_share_stays_on_the_device() -> None:
    link = NotingLink()
    assert_same_tokens("llama", SHAPES["many micro-batches"], distinct_rows(), link, share_on_device=0.3)
    moved = {int(what.rsplit(" ", 1)[1]) for what in link.brought}
    assert moved and min(moved) >= 2
