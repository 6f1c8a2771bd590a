"""Whatever a driver does in whatever order, the device computes with the bytes that it should, and sends those home.

Every program runs twice: on a device whose copies arrive as early as the link allows, and on one where they arrive as
late. Of what streams may do, these are the ends.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.storage.cuda_link import CudaLink, DeviceBuffer
from headrace.storage.transfer import Transfer
from tests.late_runtime import LateRuntime

SIZE = 16
NUM_SLOTS = 2
NUM_STAGING = 2

Lands = Literal["early", "late"]
Step = tuple[Literal["load", "use", "change", "store", "settle", "finish"], int]
STEPS = st.tuples(
    st.sampled_from(["load", "use", "change", "store", "settle", "finish"]), st.integers(0, NUM_SLOTS - 1)
)


@dataclass(kw_only=True)
class Slot:
    """Memory of the device, and what a program that waits for everything would find in it."""

    memory: DeviceBuffer
    value: int = 0
    arriving: Transfer | None = None
    stores: list[tuple[Transfer, memoryview, int]] = field(default_factory=list)


class Driver:
    """Does what streams of weights and KV do: waits before use, ends use before writing, waits for what goes home."""

    def __init__(self, runtime: LateRuntime, link: CudaLink) -> None:
        self._runtime = runtime
        self._link = link
        self._slots = [Slot(memory=link.device_memory(SIZE)) for _ in range(NUM_SLOTS)]
        self._staging: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(NUM_STAGING):
            self._staging.put(memoryview(bytearray(SIZE)))
        self._next_value = 1
        self.seen: list[tuple[int, set[int]]] = []

    def do(self, step: Step) -> None:
        what, number = step
        slot = self._slots[number]
        if what == "load":
            self._load(slot)
        elif what == "use":
            self._arrive(slot)
            expected = slot.value
            self._runtime.compute(lambda: self.seen.append((expected, set(slot.memory.part(0, SIZE).tolist()))))
        elif what == "change":
            self._come_home(slot)  # what is on its way home must not change
            self._arrive(slot)
            slot.value += 100
            self._runtime.compute(lambda: slot.memory.part(0, SIZE).add_(100))
        elif what == "store":
            self._arrive(slot)
            slot.memory.end_use()
            home = memoryview(bytearray(SIZE))
            slot.stores.append((self._link.download("home", slot.memory, [(0, home)]), home, slot.value))
        elif what == "settle" and slot.arriving is not None:
            slot.arriving.settle()
        else:
            self._runtime.finish()

    def check(self) -> None:
        """Ends everything, and compares what was computed with and what came home with what should have."""
        for slot in self._slots:
            self._come_home(slot)
        self._runtime.finish()
        for expected, found in self.seen:
            assert found == {expected % 256}

    def _load(self, slot: Slot) -> None:
        self._come_home(slot)
        slot.memory.end_use()
        staging = self._staging.get()
        slot.value, self._next_value = self._next_value, self._next_value % 90 + 1
        staging[:] = bytes([slot.value] * SIZE)
        slot.arriving = self._link.upload(
            "load", slot.memory, [(0, staging)], release=lambda: self._staging.put(staging)
        )

    def _arrive(self, slot: Slot) -> None:
        if slot.arriving is not None:
            slot.arriving.wait()

    def _come_home(self, slot: Slot) -> None:
        for transfer, home, expected in slot.stores:
            transfer.wait()
            assert set(home) == {expected % 256}
        slot.stores.clear()


@pytest.mark.parametrize("lands", ["early", "late"])
@given(program=st.lists(STEPS, max_size=30))
def test_every_program_computes_with_the_bytes_it_asked_for(lands: Lands, program: list[Step]) -> None:
    runtime = LateRuntime(lands=lands, computes="late")
    link = CudaLink(runtime)
    try:
        driver = Driver(runtime, link)
        for step in program:
            driver.do(step)
        driver.check()
    finally:
        link.close()
