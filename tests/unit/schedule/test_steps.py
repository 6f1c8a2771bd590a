from __future__ import annotations

from headrace.schedule.steps import (
    Bring,
    BringExperts,
    BringKV,
    Drop,
    DropExperts,
    Point,
    Resume,
    StoreKV,
    serial_steps,
    stages,
    sweep_steps,
)

EMBEDDING, LAYER, ATTENTION, HEAD = Point("embedding"), Point("layer", 0), Point("attention", 0), Point("head")
POINTS = [EMBEDDING, LAYER, ATTENTION, HEAD]


def test_a_stage_ends_where_the_next_weights_begin() -> None:
    assert stages(POINTS) == [(EMBEDDING,), (LAYER, ATTENTION), (HEAD,)]


def test_a_sweep_brings_weights_once_for_all_micro_batches() -> None:
    assert list(sweep_steps(POINTS, 2)) == [
        Bring(EMBEDDING),
        Resume(0, EMBEDDING),
        Resume(1, EMBEDDING),
        Drop(EMBEDDING),
        Bring(LAYER),
        Resume(0, LAYER),
        BringKV(0, ATTENTION),
        Resume(0, ATTENTION),
        StoreKV(0, ATTENTION),
        Resume(1, LAYER),
        BringKV(1, ATTENTION),
        Resume(1, ATTENTION),
        StoreKV(1, ATTENTION),
        Drop(LAYER),
        Bring(HEAD),
        Resume(0, HEAD),
        Resume(1, HEAD),
        Drop(HEAD),
    ]


def test_the_serial_oracle_finishes_a_micro_batch_before_the_next() -> None:
    resumed = [step for step in serial_steps(POINTS, 2) if isinstance(step, Resume)]
    assert resumed == [Resume(number, point) for number in range(2) for point in POINTS]


def test_experts_are_brought_to_each_micro_batch_and_dropped_with_their_layer() -> None:
    experts = Point("experts", 0)
    assert list(sweep_steps([LAYER, experts], 2)) == [
        Bring(LAYER),
        Resume(0, LAYER),
        BringExperts(0, experts),
        Resume(0, experts),
        Resume(1, LAYER),
        BringExperts(1, experts),
        Resume(1, experts),
        DropExperts(experts),
        Drop(LAYER),
    ]
    assert list(serial_steps([LAYER, experts], 1)) == [
        Bring(LAYER),
        Resume(0, LAYER),
        BringExperts(0, experts),
        Resume(0, experts),
        DropExperts(experts),
        Drop(LAYER),
    ]
