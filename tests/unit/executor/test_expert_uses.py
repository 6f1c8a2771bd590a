from __future__ import annotations

from headrace.executor.expert_uses import ExpertUses
from headrace.executor.image_sources import Expert

A, B = Expert(0, 1), Expert(1, 0)


def test_an_expert_counts_once_in_a_sweep() -> None:
    uses = ExpertUses()
    uses.next_sweep()
    uses.note([A, B])
    uses.note([A])
    assert uses.of(A) == uses.of(B) == 1
    assert uses.of(Expert(0, 0)) == 0


def test_earlier_uses_count_less_than_later_ones() -> None:
    uses = ExpertUses()
    for expert in (A, B):
        uses.next_sweep()
        uses.note([expert])
    assert 0 < uses.of(A) < uses.of(B)


def test_many_uses_count_more_than_the_last_one() -> None:
    uses = ExpertUses()
    for expert in (A, A, A, B):
        uses.next_sweep()
        uses.note([expert])
    assert uses.of(A) > uses.of(B)
