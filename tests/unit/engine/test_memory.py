"""How a budget is divided between activations and the KV cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from headrace.engine.memory import (
    BOOKKEEPING_BYTES,
    LIBRARY_BYTES,
    SMALLEST_SWEEP_TOKENS,
    STREAMED_BATCHED_TOKENS,
    CachePlan,
    Probe,
    SweepPlan,
    plan_cache,
    plan_sweep,
    row_bytes,
    smallest_bytes,
)
from headrace.engine.options import EngineOptions
from headrace.errors import BudgetError, OptionError
from headrace.executor.probe import ActivationPeak
from headrace.models.layer_table import AttentionSpec, LayerSpec, LayerTable, StateSpec
from headrace.storage.budget import SPENDABLE, Budget
from headrace.units import GIB, KIB, MIB

FULL = AttentionSpec(num_kv_heads=2, key_width=64, value_width=64)
SLIDING = AttentionSpec(num_kv_heads=2, key_width=64, value_width=64, window=128)
STATE = StateSpec(conv_shape=(256, 4), recurrent_shape=(8, 32, 32))
BLOCK_BYTES = 32 * 256 * 4


def table(*memories: AttentionSpec | StateSpec, max_positions: int | None = 4096) -> LayerTable:
    return LayerTable(
        model_type="llama",
        vocab_size=1000,
        hidden_size=256,
        num_heads=4,
        max_positions=max_positions,
        layers=tuple(LayerSpec(memory=memory) for memory in memories),
    )


def linear(bytes_per_token: int, fixed: int = 0) -> Probe:
    return lambda num_tokens, num_seqs: peak(fixed + num_tokens * bytes_per_token)


def peak(sweep_bytes: int, bytes_per_position: float = 1e-9) -> ActivationPeak:
    return ActivationPeak(sweep_bytes=sweep_bytes, bytes_per_position=bytes_per_position)


@dataclass(frozen=True)
class Plan:
    """Both halves, under the names that the tests speak of."""

    sweep: SweepPlan
    cache: CachePlan

    def __getattr__(self, name: str) -> int:
        found: int = getattr(self.sweep if hasattr(self.sweep, name) else self.cache, name)
        return found


def plan(
    budget: Budget,
    *memories: AttentionSpec | StateSpec,
    probe: Probe,
    max_positions: int | None = 4096,
    settle: Callable[[], None] = lambda: None,
    is_streamed: bool = False,
    host_budget: Budget | None = None,
    **options: float | str,
) -> Plan:
    layers = table(*memories, max_positions=max_positions)
    asked = EngineOptions(model="m", **options)  # type: ignore[arg-type]
    sweep = plan_sweep(
        table=layers,
        budget=budget,
        dtype_bytes=4,
        block_tokens=32,
        options=asked,
        probe=probe,
        settle=settle,
        is_streamed=is_streamed,
        host_budget=host_budget,
    )
    cache = plan_cache(table=layers, budget=budget, dtype_bytes=4, block_tokens=32, options=asked, sweep=sweep)
    return Plan(sweep, cache)


def host(limit_bytes: int) -> Budget:
    return Budget(tier="host", limit_bytes=limit_bytes, option="--memory")


def test_with_ample_memory_everything_is_as_large_as_it_can_be_of_use() -> None:
    budget = host(64 * GIB)
    found = plan(budget, FULL, probe=linear(1000))
    assert (found.max_model_len, found.max_num_seqs, found.max_num_batched_tokens) == (4096, 256, 1024)
    assert found.num_blocks == (256 * 4096 // 32,)
    assert found.activation_bytes == 1_024_000
    assert found.kv_bytes == 256 * 128 * (BLOCK_BYTES + BOOKKEEPING_BYTES)


def test_what_is_planned_is_charged() -> None:
    budget = host(GIB)
    found = plan(budget, FULL, probe=linear(1000))
    assert budget.charged_bytes == found.activation_bytes + found.kv_bytes
    assert "activations" in budget.ledger() and "KV cache" in budget.ledger()


def test_sweeps_become_smaller_rather_than_that_they_take_more_than_a_third() -> None:
    found = plan(host(90 * MIB), FULL, probe=linear(MIB // 10))
    assert 256 <= found.max_num_batched_tokens <= 300
    assert found.activation_bytes <= 30 * MIB
    assert found.max_num_seqs <= found.max_num_batched_tokens


def test_a_fixed_part_of_activations_does_not_make_sweeps_small() -> None:
    assert plan(host(90 * MIB), FULL, probe=linear(MIB // 100, fixed=18 * MIB)).max_num_batched_tokens == 1024


def test_no_sweep_is_tried_that_could_take_more_than_there_is() -> None:
    tried: list[int] = []

    def probe(num_tokens: int, num_seqs: int) -> ActivationPeak:
        assert num_seqs <= num_tokens
        tried.append(num_tokens * MIB)
        return peak(tried[-1])

    plan(host(200 * MIB), FULL, probe=probe)
    assert max(tried) <= 200 * MIB
    assert tried[0] == SMALLEST_SWEEP_TOKENS * MIB


def test_few_bytes_shorten_the_context_and_a_row_of_that_length_fits() -> None:
    found = plan(host(4 * MIB), FULL, probe=linear(1000))
    assert 64 <= found.max_model_len < 4096
    assert found.num_blocks[0] * 32 >= found.max_model_len


def test_a_context_that_was_asked_for_is_kept_or_refused() -> None:
    assert plan(host(GIB), FULL, probe=linear(1000), max_model_len=100).max_model_len == 100
    with pytest.raises(BudgetError, match="the KV of a row of 4096 tokens needs"):
        plan(host(4 * MIB), FULL, probe=linear(1000), max_model_len=4096)


def test_a_context_beyond_the_model_s_own_is_refused() -> None:
    with pytest.raises(OptionError, match="max_model_len is 5000; this model was made for at most 4096 tokens"):
        plan(host(GIB), FULL, probe=linear(1000), max_model_len=5000)


def test_models_without_a_limit_get_one() -> None:
    assert plan(host(64 * GIB), STATE, probe=linear(1000), max_positions=None).max_model_len == 32_768


def test_a_context_is_shortened_rather_than_that_its_attention_takes_more_than_a_third() -> None:
    found = plan(host(900 * MIB), FULL, probe=lambda num_tokens, num_seqs: peak(MIB, 100 * KIB))
    assert found.max_model_len == pytest.approx((SPENDABLE * 900 / 3 - 1) * MIB / (100 * KIB), rel=0.01)
    assert found.max_num_batched_tokens == 1024


def test_sweeps_are_small_rather_than_that_the_context_is_shorter_than_is_useful() -> None:
    def probe(num_tokens: int, num_seqs: int) -> ActivationPeak:
        return peak(num_tokens * MIB // 10, 10 * KIB)

    found = plan(host(150 * MIB), FULL, probe=probe)
    assert found.max_model_len >= 2048
    assert 200 < found.max_num_batched_tokens <= 300


def test_streamed_sweeps_have_more_tokens_which_wait_for_their_turn() -> None:
    found = plan(host(4 * GIB), FULL, probe=linear(1000), is_streamed=True)
    assert found.max_num_batched_tokens == STREAMED_BATCHED_TOKENS
    assert found.micro_batch_tokens == 1024
    short = plan(host(2 * MIB), FULL, probe=linear(1000), is_streamed=True)
    assert short.micro_batch_tokens < 1024
    assert short.micro_batch_tokens <= short.max_num_batched_tokens < STREAMED_BATCHED_TOKENS


def test_where_the_device_is_short_micro_batches_wait_on_its_host() -> None:
    device, below = Budget(tier="device", limit_bytes=90 * MIB, option="--gpu-memory"), host(GIB)
    found = plan(device, FULL, probe=linear(MIB // 10), is_streamed=True, host_budget=below)
    assert 256 <= found.sweep.micro_batch_tokens <= 300
    assert found.max_num_batched_tokens == STREAMED_BATCHED_TOKENS
    assert found.sweep.below is not None
    assert below.charged_bytes == found.sweep.below.host_bytes >= STREAMED_BATCHED_TOKENS * (3 * 4 + 4) * 256
    assert found.sweep.below.slot_bytes < 301 * (3 * 4 + 4) * 256
    assert device.charged_bytes == found.activation_bytes + found.kv_bytes <= device.limit_bytes


def test_where_the_host_is_short_too_sweeps_stay_small() -> None:
    device, below = Budget(tier="device", limit_bytes=90 * MIB, option="--gpu-memory"), host(20 * MIB)
    found = plan(device, FULL, probe=linear(MIB // 10), is_streamed=True, host_budget=below)
    assert found.micro_batch_tokens <= 300 and found.sweep.below is None and below.charged_bytes == 0
    assert found.max_num_batched_tokens in range(2 * found.micro_batch_tokens, STREAMED_BATCHED_TOKENS)
    assert found.max_num_batched_tokens % found.micro_batch_tokens == 0


def test_where_the_device_has_room_everything_waits_there_unless_a_share_is_asked_for() -> None:
    def planned(**options: float) -> SweepPlan:
        return plan(host(4 * GIB), FULL, probe=linear(1000), is_streamed=True, host_budget=host(GIB), **options).sweep

    assert planned().below is None and planned(activations_on_device=1).below is None
    half, none = planned(activations_on_device=0.5), planned(activations_on_device=0)
    assert half.below is not None and half.below == none.below
    assert half.activation_bytes > none.activation_bytes
    assert planned(activations_on_device=0, num_micro_batches=8).below != none.below


def test_a_share_that_the_host_does_not_hold_is_refused() -> None:
    with pytest.raises(BudgetError, match="waiting micro-batches"):
        plan(
            host(4 * GIB),
            FULL,
            probe=linear(1000),
            is_streamed=True,
            host_budget=host(MIB),
            activations_on_device=0,
        )


def test_what_a_probe_leaves_behind_is_not_given_to_the_cache() -> None:
    budget = host(100 * MIB)
    found = plan(budget, FULL, probe=linear(1000), settle=lambda: budget.settle("libraries", 40 * MIB))
    assert found.kv_bytes < 60 * MIB


@pytest.mark.parametrize("seed", range(50))
def test_any_plan_stays_within_any_budget(seed: int) -> None:
    draw = random.Random(seed)
    memories = draw.choices([FULL, SLIDING, STATE], k=draw.randint(1, 8))
    budget = host(draw.randint(1 * MIB, 200 * MIB))
    try:
        found = plan(budget, *memories, probe=linear(draw.randint(10, 100_000), fixed=draw.randint(0, 10 * MIB)))
    except BudgetError:
        assert budget.charged_bytes <= budget.limit_bytes
        return
    assert budget.charged_bytes == found.activation_bytes + found.kv_bytes <= budget.limit_bytes
    blocks = dict(zip(table(*memories).groups, found.num_blocks, strict=True))
    for group, count in blocks.items():
        if group.kind == "full":
            assert count * 32 >= found.max_model_len
        elif group.kind == "sliding":
            assert count * 32 >= min(found.max_model_len, 128 + found.max_num_batched_tokens)
        else:
            assert count >= 3


def test_the_smallest_need_grows_with_what_is_asked_for_and_covers_the_smallest_plan() -> None:
    def smallest(**options: int) -> int:
        return smallest_bytes(
            table=table(FULL, STATE),
            dtype_bytes=4,
            block_tokens=32,
            options=EngineOptions(model="m", **options),  # type: ignore[arg-type]
        )

    assert smallest(max_model_len=4096) > smallest(max_model_len=1000) > smallest() > LIBRARY_BYTES
    probe = linear(4 * 32 * 256 + 8 * 1000)
    found = plan(host(smallest() - LIBRARY_BYTES), FULL, STATE, probe=probe)
    assert found.max_model_len >= 64
    with pytest.raises(OptionError):
        smallest(max_model_len=4097)


@pytest.mark.parametrize(("kv_cache_dtype", "token_bytes"), [("auto", 1024), ("int8", 2 * 136), ("int4", 2 * 72)])
def test_a_row_takes_the_bytes_that_its_keys_and_values_are_kept_in(kv_cache_dtype: str, token_bytes: int) -> None:
    budget = host(20 * MIB)
    found = plan(budget, FULL, probe=linear(1000), kv_cache_dtype=kv_cache_dtype)
    assert found.kv_bytes == found.num_blocks[0] * (32 * token_bytes + BOOKKEEPING_BYTES)
    assert budget.free_bytes < 32 * token_bytes + BOOKKEEPING_BYTES
    options = EngineOptions(model="m", kv_cache_dtype=kv_cache_dtype)
    row = row_bytes(
        table=table(FULL), dtype_bytes=4, block_tokens=32, options=options, sweep=found.sweep, num_tokens=64
    )
    assert row == 2 * (32 * token_bytes + BOOKKEEPING_BYTES)


def test_the_smallest_need_falls_with_the_bytes_of_keys_and_values() -> None:
    def smallest(kv_cache_dtype: str) -> int:
        options = EngineOptions(model="m", max_model_len=4096, kv_cache_dtype=kv_cache_dtype)
        return smallest_bytes(table=table(FULL, STATE), dtype_bytes=4, block_tokens=32, options=options)

    assert smallest("auto") - smallest("int8") == 4096 * (1024 - 2 * 136)
    assert smallest("int8") - smallest("int4") == 4096 * 2 * (136 - 72)


def test_a_model_without_keys_and_values_has_nothing_to_keep_in_codes() -> None:
    options = EngineOptions(model="m", kv_cache_dtype="int8")
    with pytest.raises(OptionError, match="kv_cache_dtype is int8, but a model of type llama keeps no keys and values"):
        smallest_bytes(table=table(STATE), dtype_bytes=4, block_tokens=32, options=options)
