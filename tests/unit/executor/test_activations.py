"""Activations that are sent away leave no memory behind, and come back as they were."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

from headrace.executor.activations import ActivationsBelow, slot_bytes
from headrace.storage.cuda_link import CudaLink
from headrace.storage.link import Link
from headrace.storage.simulated_device import SimulatedDevice, SimulatedLink
from tests.late_runtime import LateRuntime

TOKENS, BYTES_PER_TOKEN = 5, 4 * 8


@pytest.fixture(params=["simulated", "early", "late"])
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    before, made = threading.active_count(), open_link(request.param)
    yield made
    made.close()
    assert threading.active_count() == before


def open_link(kind: Literal["simulated", "early", "late"]) -> Link:
    if kind == "simulated":
        return SimulatedLink(SimulatedDevice(memory_bytes=1 << 30, bytes_per_second=2e10))
    return CudaLink(LateRuntime(lands=kind))


def below(link: Link, num_micro_batches: int, share: float = 0.0) -> ActivationsBelow:
    return ActivationsBelow(
        link,
        slot_bytes=slot_bytes(TOKENS, BYTES_PER_TOKEN),
        host_bytes=slot_bytes(num_micro_batches * TOKENS, BYTES_PER_TOKEN) + 64 * num_micro_batches,
        share_on_device=share,
    )


def hidden(value: float) -> Tensor:
    return torch.full((1, TOKENS, 8), value)


def size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def test_every_turn_finds_what_the_last_one_left(link: Link) -> None:
    own = below(link, 6)
    draw = random.Random(3)
    for num_micro_batches in (1, 2, 3, 4, 6):
        turns = [*range(num_micro_batches)] * 3 + [draw.randrange(num_micro_batches) for _ in range(30)]
        own.begin([TOKENS] * num_micro_batches, turns)
        kept: dict[int, tuple[Tensor, float]] = {}
        for number, micro_batch in enumerate(turns):
            own.bring(micro_batch)
            if micro_batch in kept:
                tensor, value = kept[micro_batch]
                assert tensor.eq(value).all()
            kept[micro_batch] = (hidden(float(number)), float(number))
            own.send(micro_batch, [kept[micro_batch][0], kept[micro_batch][0][:, :1]])
        own.end()
    own.close()


def test_what_waits_takes_no_memory_of_the_device(link: Link) -> None:
    own = below(link, 4)
    own.begin([TOKENS] * 4, [0, 1, 2, 3, 0])
    tensors = [hidden(float(number)) for number in range(4)]
    for number, tensor in enumerate(tensors):
        own.bring(number)
        own.send(number, [tensor])
    sizes = [size(tensor) for tensor in tensors]  # pytest, where it shows a tensor, would look at memory that is gone
    assert sizes == [0, 0, 0, 0]
    own.bring(0)
    assert tensors[0].eq(0).all()
    own.close()
    own.close()


def test_what_is_too_large_stays(link: Link) -> None:
    own = below(link, 2)
    own.begin([TOKENS, TOKENS], [0, 1, 0])
    large = torch.ones(1, 10 * TOKENS, 8)
    own.bring(0)
    own.send(0, [large])
    assert large.eq(1).all()
    own.close()


def test_the_first_micro_batches_stay_where_a_share_shall(link: Link) -> None:
    own = below(link, 4, share=0.5)
    tensors = [hidden(1.0) for _ in range(4)]
    own.begin([TOKENS] * 4, [0, 1, 2, 3, 0, 1, 2, 3])
    for number, tensor in enumerate(tensors):
        own.bring(number)
        own.send(number, [tensor])
    are_there = [size(tensor) > 0 for tensor in tensors]
    assert are_there == [True, True, False, False]
    own.close()


def test_a_sweep_that_ends_early_leaves_the_next_one_whole(link: Link) -> None:
    own = below(link, 4)
    for cut in range(1, 8):
        own.begin([TOKENS] * 4, [0, 1, 2, 3] * 2)
        for number in ([0, 1, 2, 3] * 2)[:cut]:
            own.bring(number)
            own.send(number, [hidden(9.0)])
    own.begin([TOKENS] * 4, [0, 1, 2, 3, 0])
    tensors = [hidden(float(number)) for number in range(4)]
    for number, tensor in enumerate(tensors):
        own.bring(number)
        own.send(number, [tensor])
    own.bring(0)
    assert tensors[0].eq(0).all()
    own.close()
