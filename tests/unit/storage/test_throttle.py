"""A throttle lets bytes pass at its rate, whatever their sizes."""

from __future__ import annotations

from headrace.storage.throttle import Throttle


class Clock:
    """Time that passes only while someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_bytes_take_their_time() -> None:
    clock = Clock()
    throttle = Throttle(100, clock=clock.read, sleep=clock.sleep)
    throttle.pass_bytes(50)
    assert clock.now == 0.5
    throttle.pass_bytes(100)
    assert clock.now == 1.5


def test_time_in_which_nothing_passed_is_not_made_up_for() -> None:
    clock = Clock()
    throttle = Throttle(100, clock=clock.read, sleep=clock.sleep)
    clock.now = 10
    throttle.pass_bytes(100)
    assert clock.now == 11
