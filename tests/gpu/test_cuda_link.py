"""The link of a real CUDA device: pinned memory, copies in both directions, and their order."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from headrace.storage.aligned import AlignedBuffer
from headrace.storage.cuda_link import CudaLink, DeviceBuffer, PinnedBuffer
from headrace.storage.cuda_runtime import CudaRuntime
from headrace.storage.transfer import Transfer
from headrace.units import MIB

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
SIZE = 16 * MIB
A_WHILE = 20_000_000
"""Cycles of the device, some ten milliseconds: longer than a copy of `SIZE`."""


@pytest.fixture(params=[True, False], ids=["pinned", "not pinned"])
def link(request: pytest.FixtureRequest) -> Iterator[CudaLink]:
    made = CudaLink(CudaRuntime(DEVICE), pins=request.param)
    yield made
    made.close()


def host_of(link: CudaLink, value: int) -> AlignedBuffer:
    buffer = link.host_memory(SIZE)
    buffer.tensor(0, (SIZE,), torch.uint8).fill_(value)
    return buffer


def test_registered_memory_is_pinned_for_torch_and_no_longer_after_closing() -> None:
    link = CudaLink(CudaRuntime(DEVICE))
    buffer = link.host_memory(SIZE)
    assert isinstance(buffer, PinnedBuffer) and buffer.is_pinned
    tensor = buffer.tensor(0, (SIZE,), torch.uint8)
    assert tensor.is_pinned()
    buffer.close()
    assert not tensor.is_pinned()
    link.close()


def test_a_refused_registration_leaves_no_error_behind() -> None:
    runtime = CudaRuntime(DEVICE)
    with AlignedBuffer(SIZE) as buffer:
        address = buffer.tensor(0, (1,), torch.uint8).data_ptr()
        assert runtime.pin(address, SIZE)
        assert not runtime.pin(address, SIZE)  # it is registered already
        assert (torch.ones(3, device=DEVICE) + 1).tolist() == [2, 2, 2]
        runtime.unpin(address)


def test_bytes_go_up_and_come_home(link: CudaLink) -> None:
    source, target, slot = host_of(link, 7), host_of(link, 0), link.device_memory(SIZE)
    halves = [(0, source.bytes[: SIZE // 2]), (SIZE // 2, source.bytes[SIZE // 2 :])]
    link.upload("up", slot, halves).wait()
    slot.tensor(0, (SIZE,), torch.uint8).add_(1)
    link.download("home", slot, [(0, target.bytes)]).wait()
    assert target.tensor(0, (SIZE,), torch.uint8).eq(8).all()
    del halves
    source.close()
    target.close()


def test_memory_in_use_is_not_written_before_its_use_has_ended(link: CudaLink) -> None:
    first, second, slot = host_of(link, 1), host_of(link, 2), link.device_memory(SIZE)
    link.upload("first", slot, [(0, first.bytes)]).wait()
    torch.cuda._sleep(A_WHILE)  # type: ignore[no-untyped-call]
    seen = slot.tensor(0, (SIZE,), torch.uint8).clone()
    slot.end_use()
    link.upload("second", slot, [(0, second.bytes)]).settle()
    assert seen.eq(1).all()
    first.close()
    second.close()


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_of_slots_computes_with_the_right_bytes_while_the_driver_runs_ahead(link: CudaLink, seed: int) -> None:
    draw = random.Random(seed)
    hosts = [host_of(link, value) for value in range(5)]
    slots: list[DeviceBuffer] = [link.device_memory(SIZE) for _ in range(3)]
    home = host_of(link, 0)
    expected, seen = [], []
    ahead: list[tuple[int, DeviceBuffer, Transfer]] = []
    for _ in range(30):
        while slots:
            value, slot = draw.randrange(5), slots.pop()
            ahead.append((value, slot, link.upload(f"value {value}", slot, [(0, hosts[value].bytes)])))
        value, slot, transfer = ahead.pop(0)
        transfer.wait()
        if draw.random() < 0.5:
            torch.cuda._sleep(draw.randrange(A_WHILE))  # type: ignore[no-untyped-call]
        memory = slot.tensor(0, (SIZE,), torch.uint8)
        memory.add_(1)
        expected.append(value + 1)
        seen.append(torch.stack((memory.min(), memory.max())))
        slot.end_use()
        if draw.random() < 0.3:
            link.download("home", slot, [(0, home.bytes)]).wait()
            assert home.tensor(0, (SIZE,), torch.uint8).eq(value + 1).all()
        slots.append(slot)
    assert [pair.tolist() for pair in seen] == [[value, value] for value in expected]
    for _, _, transfer in ahead:
        transfer.settle()
    for host in (*hosts, home):
        host.close()


def test_its_rate_is_that_of_a_bus(link: CudaLink) -> None:
    assert 1e8 < link.bytes_per_second < 1e13
