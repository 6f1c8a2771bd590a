"""Reads come in their order, and neighbours together."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from headrace.storage.read_queue import ReadQueue


@dataclass(frozen=True)
class Asked:
    file: str
    offset: int
    num_bytes: int


@pytest.fixture
def queue() -> ReadQueue[Asked]:
    return ReadQueue(100)


def put(queue: ReadQueue[Asked], *reads: Asked) -> None:
    for read in reads:
        queue.put(read)


def test_reads_apart_come_one_by_one_in_their_order(queue: ReadQueue[Asked]) -> None:
    reads = [Asked("a", 50, 10), Asked("a", 0, 10), Asked("b", 10, 10), Asked("a", 11, 5)]
    put(queue, *reads)
    assert [queue.take() for _ in reads] == [[read] for read in reads]


def test_those_that_follow_in_the_file_come_with_the_oldest(queue: ReadQueue[Asked]) -> None:
    first, elsewhere, second, third = Asked("a", 0, 10), Asked("b", 0, 10), Asked("a", 10, 20), Asked("a", 30, 5)
    put(queue, first, elsewhere, second, third)
    assert queue.take() == [first, second, third]
    assert queue.take() == [elsewhere]


def test_together_they_are_no_larger_than_one_large_request(queue: ReadQueue[Asked]) -> None:
    reads = [Asked("a", 40 * index, 40) for index in range(5)]
    put(queue, *reads)
    assert [len(queue.take()) for _ in range(3)] == [2, 2, 1]


def test_one_alone_may_be_larger(queue: ReadQueue[Asked]) -> None:
    large, next_one = Asked("a", 0, 300), Asked("a", 300, 1)
    put(queue, large, next_one)
    assert (queue.take(), queue.take()) == ([large], [next_one])


def test_the_same_bytes_may_be_asked_for_twice(queue: ReadQueue[Asked]) -> None:
    put(queue, Asked("a", 10, 10), Asked("a", 10, 10), Asked("a", 0, 10))
    taken = [queue.take() for _ in range(2)]
    taken.append(queue.take())
    assert sorted(read.offset for reads in taken for read in reads) == [0, 10, 10]


def test_what_was_put_before_the_end_is_taken_before_it(queue: ReadQueue[Asked]) -> None:
    put(queue, Asked("a", 0, 10))
    queue.close()
    assert queue.take() == [Asked("a", 0, 10)]
    assert queue.take() == queue.take() == []


def test_those_who_wait_learn_of_a_read_and_of_the_end(queue: ReadQueue[Asked]) -> None:
    taken: list[list[Asked]] = []
    threads = [threading.Thread(target=lambda: taken.append(queue.take())) for _ in range(2)]
    for thread in threads:
        thread.start()
    put(queue, Asked("a", 0, 10))
    queue.close()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(taken, key=len) == [[], [Asked("a", 0, 10)]]
