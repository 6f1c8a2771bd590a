"""Rows that lose their blocks have their KV moved below and up again: no token is computed twice, and all are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.schedule.steps import serial_steps
from headrace.scheduler.sweep import Sweep
from tests.parity.harness import (
    Row,
    Shape,
    crowded_rows,
    generated,
    make_prompt,
    make_rig,
    scattered_steps,
    tiny_engine_model,
)
from tests.parity.placements import moving
from tests.tiny_configs import TINY_CONFIGS

SHAPES = {
    "one micro-batch": Shape(scarce=True, block_tokens=4),
    "many micro-batches": Shape(scarce=True, block_tokens=4, num_micro_batches=3, sweep_tokens=23),
    "wild": Shape(scarce=True, block_tokens=4, num_micro_batches=2, sweep_tokens=31, schedule=scattered_steps),
    "serial, unshared": Shape(
        scarce=True, block_tokens=4, num_micro_batches=2, sweep_tokens=64, schedule=serial_steps, shares_prefixes=False
    ),
    "large blocks": Shape(scarce=True, block_tokens=32, sweep_tokens=31),
}
GROWING = {name for name in TINY_CONFIGS if name not in ("mamba2", "mistral")}
"""Families whose rows take ever more blocks; a state or a window does not grow, so that nobody is preempted."""


def crowded_rows_that_share(*, every: int = 0) -> list[Row]:
    """Rows that begin alike and grow apart: what they share may be found again, and the rest comes up."""
    return [Row(prompt=make_prompt(9) + make_prompt(3, n), num_new=20, arrival=every * n) for n in range(5)]


ROWS = {"crowded": crowded_rows, "sharing": crowded_rows_that_share}


def check(name: str, rows: str, shape: Shape, folder: Path, *, every: int) -> None:
    rig, chosen = make_rig(tiny_engine_model(name), shape), ROWS[rows](every=every)
    computed: list[tuple[int, int]] = []

    def watch(sweep: Sweep) -> None:
        for micro_batch in sweep.micro_batches:
            for chunk in micro_batch.chunks:
                computed.extend((chunk.sequence_id, position) for position in range(chunk.start, chunk.stop))

    with moving(rig, folder):
        tokens = rig.run(chosen, watch=watch)
    assert tokens == [generated(name, row.prompt, row.num_new) for row in chosen for _ in range(row.num_samples)]
    assert len(computed) == len(set(computed)), "a token was computed twice"
    assert rig.scheduler.num_moved_down == rig.scheduler.num_preemptions
    if name in GROWING and shape.block_tokens == 4:
        assert rig.scheduler.num_moved_down > 0, "there were blocks for all"


@pytest.mark.parametrize("name", sorted(TINY_CONFIGS))
def test_rows_whose_kv_is_moved_down_and_up_again_are_generated_as_alone(name: str, tmp_path: Path) -> None:
    check(name, "crowded", SHAPES["many micro-batches"], tmp_path, every=0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", sorted(TINY_CONFIGS))
def test_tokens_do_not_depend_on_what_was_moved(name: str, rows: str, shape: str, tmp_path: Path) -> None:
    check(name, rows, SHAPES[shape], tmp_path, every=1)
