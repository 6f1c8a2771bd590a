"""A CUDA link puts everything in order by events, on a double whose streams do their work late."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from headrace.storage.aligned import PAGE_BYTES, AlignedBuffer
from headrace.storage.cuda_link import CudaLink, DeviceBuffer, PinnedBuffer
from headrace.storage.transfer import Transfer
from tests.late_runtime import NAN_BYTE, LateRuntime

SIZE = 64


@contextmanager
def opened(runtime: LateRuntime, *, pins: bool = True) -> Iterator[CudaLink]:
    before = threading.active_count()
    link = CudaLink(runtime, pins=pins)
    try:
        yield link
    finally:
        link.close()
        link.close()
    assert threading.active_count() == before


def filled(value: int, num_bytes: int = SIZE) -> memoryview:
    return memoryview(bytearray([value] * num_bytes))


def values(buffer: DeviceBuffer) -> set[int]:
    return set(buffer.part(0, SIZE).tolist())


def test_bytes_are_there_for_work_that_comes_after_waiting() -> None:
    with opened(LateRuntime(lands="late")) as link:
        slot = link.device_memory(SIZE)
        transfer = link.upload("w", slot, [(0, filled(7, 16)), (16, filled(8, 48))])
        transfer.settle()
        assert values(slot) == {NAN_BYTE}  # the copies are made, but nobody has waited for them on the device
        transfer.wait()
        assert values(slot) == {7, 8} and slot.part(15, 2).tolist() == [7, 8]


def test_memory_that_is_in_use_is_written_after_the_work_that_was_given_before_its_use_ended() -> None:
    runtime = LateRuntime(lands="early", computes="late")
    with opened(runtime) as link:
        slot, seen = link.device_memory(SIZE), list[set[int]]()
        link.upload("first", slot, [(0, filled(1))]).wait()
        runtime.compute(lambda: seen.append(values(slot)))
        slot.end_use()
        link.upload("second", slot, [(0, filled(2))]).settle()
        runtime.finish()
        assert seen == [{1}] and values(slot) == {2}


def test_new_memory_is_written_after_the_zeros_that_it_begins_with() -> None:
    runtime = LateRuntime(lands="early", computes="late")
    with opened(runtime) as link:
        done: list[str] = []
        runtime.compute(lambda: done.append("what had the memory before"))
        link.upload("w", link.device_memory(SIZE), [(0, filled(1))]).settle()
        assert done


def test_a_download_has_what_the_work_given_before_it_writes() -> None:
    runtime = LateRuntime(computes="late")
    with opened(runtime) as link:
        slot, host = link.device_memory(SIZE), filled(0)
        runtime.compute(lambda: slot.part(0, SIZE).fill_(5))
        link.download("home", slot, [(0, host)]).wait()
        assert set(host) == {5}


def test_the_host_s_memory_is_given_back_when_it_was_read() -> None:
    with opened(LateRuntime()) as link:
        slot, host = link.device_memory(SIZE), filled(1)
        transfer = link.upload("w", slot, [(0, host)], release=lambda: host.__setitem__(slice(None), bytes([9] * SIZE)))
        transfer.settle()
        transfer.wait()
        assert set(host) == {9} and values(slot) == {1}


def test_an_upload_comes_after_what_brings_its_bytes_to_the_host() -> None:
    with opened(LateRuntime()) as link:
        slot, host, reading = link.device_memory(SIZE), filled(0), Transfer("reading", 1)
        transfer = link.upload("w", slot, [(0, host)], after=reading)
        host[:] = bytes([3] * SIZE)
        reading.finish_part()
        transfer.wait()
        assert values(slot) == {3}


def test_an_error_before_an_upload_is_its_own_and_the_next_one_is_well() -> None:
    with opened(LateRuntime()) as link:
        slot, reading, released = link.device_memory(SIZE), Transfer("reading", 1), list[int]()
        failing = link.upload("w", slot, [(0, filled(1))], after=reading, release=lambda: released.append(1))
        reading.finish_part(OSError("broken"))
        with pytest.raises(OSError, match="broken"):
            failing.wait()
        failing.settle()
        link.upload("w", slot, [(0, filled(2))]).wait()
        assert values(slot) == {2} and released == [1]


def test_a_copy_that_cannot_be_begun_fails_its_transfer() -> None:
    with opened(LateRuntime()) as link:
        slot = link.device_memory(SIZE)
        with pytest.raises(AssertionError):
            link.upload("w", slot, [(SIZE - 1, filled(1, 2))]).wait()
        with pytest.raises(AssertionError):
            link.download("w", slot, [(SIZE - 1, filled(1, 2))]).wait()


def test_tensors_look_at_the_device_s_memory() -> None:
    with opened(LateRuntime()) as link:
        slot = link.device_memory(SIZE)
        slot.tensor(16, (2, 3), torch.float32).fill_(1.5)
        assert slot.part(16, 24).view(torch.float32).tolist() == [1.5] * 6
        assert slot.tensor(0, (0, 4), torch.float32).shape == (0, 4)
        slot.close()


def test_memory_that_is_taken_in_inference_mode_is_written_outside_of_it() -> None:
    with opened(LateRuntime()) as link:
        with torch.inference_mode():
            slot = link.device_memory(SIZE)
        assert not slot.part(0, 1).is_inference()


def test_host_memory_is_pinned_until_it_is_closed() -> None:
    runtime = LateRuntime()
    with opened(runtime) as link:
        buffer = link.host_memory(2 * PAGE_BYTES)
        assert isinstance(buffer, PinnedBuffer) and list(runtime.pinned.values()) == [2 * PAGE_BYTES]
        tensor = buffer.tensor(0, (4,), torch.uint8)
        buffer.close()
        buffer.close()
        assert not runtime.pinned and tensor.sum() == 0


def test_where_pinning_is_refused_it_is_said_once_and_copies_are_right(caplog: pytest.LogCaptureFixture) -> None:
    with opened(LateRuntime(refuses_to_pin=True)) as link:
        first, second = link.host_memory(SIZE), link.host_memory(SIZE)
        assert [record.levelname for record in caplog.records] == ["WARNING"] and "cannot be pinned" in caplog.text
        first.bytes[:SIZE] = filled(4)
        slot = link.device_memory(SIZE)
        link.upload("w", slot, [(0, first.bytes[:SIZE])]).wait()
        link.download("w", slot, [(0, second.bytes[:SIZE])]).wait()
        assert set(second.bytes[:SIZE]) == {4}


def test_nothing_is_pinned_where_nobody_wants_it() -> None:
    runtime = LateRuntime()
    with opened(runtime, pins=False) as link:
        assert type(link.host_memory(SIZE)) is AlignedBuffer and not runtime.pinned


def test_its_rate_is_measured_and_leaves_no_memory_pinned() -> None:
    runtime = LateRuntime()
    with opened(runtime) as link:
        assert link.bytes_per_second > 0
        assert not runtime.pinned
