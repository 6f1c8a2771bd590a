"""Jobs are done one after another, by one thread, to the last."""

from __future__ import annotations

import threading

from headrace.storage.job_thread import JobThread


def test_jobs_are_done_in_order_and_before_closing_returns() -> None:
    before, done = threading.active_count(), list[tuple[int, str]]()
    thread = JobThread("worker")
    for number in range(100):
        thread.put(lambda number=number: done.append((number, threading.current_thread().name)))  # type: ignore[misc]
    thread.close()
    thread.close()
    assert done == [(number, "worker") for number in range(100)]
    assert threading.active_count() == before


def test_a_job_that_is_done_is_not_held() -> None:
    thread, done = JobThread("worker"), threading.Event()
    memory = bytearray(10)
    view = memoryview(memory)
    thread.put(lambda view=view: None)  # type: ignore[misc]
    del view
    thread.put(done.set)
    done.wait()
    memory.clear()  # raises where somebody looks at it
    thread.close()
