"""MBU and MFU, reckoned by hand."""

from __future__ import annotations

import pytest

from headrace.bench.utilization import Limits, Utilization
from headrace.engine.model_work import ExpertWeights, ModelWork
from headrace.models.layer_table import AttentionSpec, ExpertsSpec, LayerSpec, LayerTable
from tests.unit.bench.runs import row, timed

TABLE = LayerTable(
    model_type="llama",
    vocab_size=100,
    hidden_size=8,
    num_heads=4,
    max_positions=None,
    layers=(LayerSpec(memory=AttentionSpec(num_kv_heads=2, key_width=3, value_width=3)),),
)
WORK = ModelWork(
    device="cpu",
    dtype="float32",
    table=TABLE,
    kv_number_bytes=4,
    weight_bytes=5_000,
    layer_weights=700,
    head_weights=300,
)
KV = 2 * (3 + 3) * 4
LIMITS = Limits(memory_bytes_per_second=1e5, matrix_operations_per_second=1e6, measured="never")


def test_decoding_reads_the_weights_once_a_sweep_and_the_kv_of_every_row() -> None:
    run = timed([row(1.0, 2.0, 4.0, prompt=10), row(2.0, 4.0, prompt=20)], 5.0)
    # Sweeps that end at 2 and at 4 decode: the first row with 11 and 12 tokens, the second, in the last one, with 21.
    num_bytes = 2 * 5_000 + (11 + 12 + 21) * KV
    assert Utilization.of([run], WORK, LIMITS).mbu == pytest.approx(num_bytes / 3.0 / 1e5)


def test_runs_add_up() -> None:
    slow, quick = timed([row(1.0, 3.0)], 3.0), timed([row(1.0, 2.0)], 2.0)
    found = Utilization.of([slow, quick], WORK, LIMITS)
    assert found.mbu == pytest.approx(2 * (5_000 + 11 * KV) / 3.0 / 1e5)
    assert found.mfu == pytest.approx(2 * WORK.operations(11, 2) / 5.0 / 1e6)


def test_tokens_that_one_sweep_gave_a_row_are_read_for_once() -> None:
    run = timed([row(1.0, 2.0, 2.0, 2.0)], 2.0)
    assert Utilization.of([run], WORK, LIMITS).mbu == pytest.approx((5_000 + 11 * KV) / 1.0 / 1e5)


def test_without_further_tokens_nothing_decodes() -> None:
    assert Utilization.of([timed([row(1.0), row(2.0)], 2.0)], WORK, LIMITS).mbu is None


def test_operations_are_products_of_every_token_but_the_last_and_attention_of_pairs() -> None:
    found = Utilization.of([timed([row(1.0, 2.0, prompt=3)], 2.0)], WORK, LIMITS)
    products = 2 * (4 * 700 + 2 * 300)
    attention = (1 + 2 + 3 + 4) * 2 * 4 * (3 + 3)
    assert found.mfu == pytest.approx((products + attention) / 2.0 / 1e6)


def test_of_experts_those_count_that_the_sweep_s_tokens_likely_need() -> None:
    experts = ExpertWeights(spec=ExpertsSpec(num_experts=4, num_per_token=1), num_bytes=4_000, num_weights=1_000)
    work = ModelWork(
        device="cpu", dtype="float32", table=TABLE, kv_number_bytes=4, weight_bytes=0, layer_weights=0, head_weights=0,
        experts=(experts,),
    )  # fmt: skip
    assert work.sweep_bytes(1) == 1_000
    assert work.sweep_bytes(2) == pytest.approx(4_000 * (1 - 0.75**2))
    assert work.operations(1, 1) == 2 * 250 + 2 * 4 * 6
