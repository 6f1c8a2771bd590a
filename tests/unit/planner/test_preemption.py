from __future__ import annotations

from headrace.planner.preemption import MoveRates, SweepSpeed, moving_is_faster

DISK = MoveRates(down=100.0, up=400.0)


def test_both_ways_are_compared_with_computing() -> None:
    # 1,000 bytes take 10 s down and 2.5 s up; 25 tokens at 2 tokens per second take 12.5 s.
    assert not moving_is_faster(1000, DISK, num_tokens=25, tokens_per_second=2)
    assert moving_is_faster(1000, DISK, num_tokens=26, tokens_per_second=2)


def test_a_state_of_few_tokens_is_computed_again_and_one_of_many_is_moved() -> None:
    assert not moving_is_faster(10_000, DISK, num_tokens=10, tokens_per_second=1)
    assert moving_is_faster(10_000, DISK, num_tokens=1000, tokens_per_second=1)


def test_the_fastest_sweep_counts() -> None:
    speed = SweepSpeed()
    for num_tokens, seconds in ((1, 1.0), (100, 2.0), (4, 1.0)):
        speed.note(num_tokens, seconds)
    assert speed.tokens_per_second == 50
