from __future__ import annotations

import pytest

from headrace.scheduler.limits import SweepLimits


@pytest.mark.parametrize(
    ("num_micro_batches", "num_tokens", "expected"),
    [(1, 100, 32), (1, 20, 20), (2, 20, 10), (3, 20, 7), (4, 2, 1), (2, 0, 1)],
)
def test_micro_batches_share_a_sweep_evenly_up_to_their_maximum(
    num_micro_batches: int, num_tokens: int, expected: int
) -> None:
    limits = SweepLimits(
        max_num_seqs=1, max_num_batched_tokens=100, max_micro_batch_tokens=32, num_micro_batches=num_micro_batches
    )
    assert limits.micro_batch_tokens(num_tokens) == expected


def test_limits_under_which_nothing_runs_raise() -> None:
    with pytest.raises(AssertionError, match="never run anything"):
        SweepLimits(max_num_seqs=0, max_num_batched_tokens=1, max_micro_batch_tokens=1)
