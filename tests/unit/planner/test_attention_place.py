"""The host attends where bringing its KV would take longer."""

from __future__ import annotations

import pytest

from headrace.planner.attention_place import AttentionRates, host_is_faster

GIB = 1 << 30


@pytest.mark.parametrize(
    ("link", "num_operations", "expected"),
    [
        (8e9, 10**9, True),  # decoding over a slow link
        (60e9, 10**9, False),  # decoding over a link that is faster than the host's attention
        (8e9, 10**12, False),  # a prompt
    ],
)
def test_the_slower_link_and_the_fewer_operations_speak_for_the_host(
    link: float, num_operations: int, expected: bool
) -> None:
    rates = AttentionRates(link=link, host_bytes=20e9, host_operations=100e9)
    assert host_is_faster(GIB, num_operations, rates) is expected
