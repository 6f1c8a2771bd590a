"""Sweeps become smaller while the process uses more than it was given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.engine.engine import Engine
from headrace.errors import BudgetError
from headrace.executor.executor import Executor
from headrace.kv_cache.groups import KVGroup
from headrace.kv_cache.manager import KVCacheManager
from headrace.models.tokenizer import WithoutTokenizer
from headrace.sampling.guidance import Guidance
from headrace.sampling.parameters import GenerationDefaults
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.scheduler import Scheduler
from headrace.storage.budget import Budget
from headrace.storage.governor import Governor
from headrace.trace import NoTrace


class Gauge:
    """What the process is said to use."""

    def __init__(self, used_bytes: int) -> None:
        self.used_bytes, self.num_looks = used_bytes, 0

    def __call__(self) -> int:
        self.num_looks += 1
        return self.used_bytes


@pytest.fixture
def gauge() -> Gauge:
    return Gauge(500)


@pytest.fixture
def engine(gauge: Gauge) -> Iterator[Engine]:
    cache = KVCacheManager([KVGroup(group_id=0, layers=(0,), kind="full")], num_blocks=[8])
    limits = SweepLimits(max_num_seqs=200, max_num_batched_tokens=512, max_micro_batch_tokens=300, num_micro_batches=2)
    yield Engine(
        scheduler=Scheduler(cache, limits),
        executor=object.__new__(Executor),  # nothing is run
        governor=Governor(budget=Budget(tier="host", limit_bytes=1000, option="--memory"), measure=gauge),
        tokenizer=WithoutTokenizer(),
        guidance=Guidance(WithoutTokenizer(), num_tokens=100, end_token_ids=(), trace=NoTrace()),
        defaults=GenerationDefaults(),
        max_model_len=128,
        vocab_size=100,
        seed=0,
    )


def step(engine: Engine, times: int) -> None:
    for _ in range(times):
        engine.step()


def test_memory_is_looked_at_now_and_then_and_not_at_every_sweep(engine: Engine, gauge: Gauge) -> None:
    step(engine, 160)
    assert gauge.num_looks == 40


def test_within_the_budget_limits_stay(engine: Engine) -> None:
    before = engine.scheduler.limits
    step(engine, 64)
    assert engine.scheduler.limits is before


def test_above_the_budget_limits_are_halved_until_use_falls(engine: Engine, gauge: Gauge) -> None:
    gauge.used_bytes = 1100
    step(engine, 4)
    limits = engine.scheduler.limits
    assert (limits.max_num_batched_tokens, limits.max_micro_batch_tokens, limits.max_num_seqs) == (256, 256, 200)
    step(engine, 4)
    limits = engine.scheduler.limits
    assert (limits.max_num_batched_tokens, limits.max_micro_batch_tokens, limits.max_num_seqs) == (128, 128, 128)
    assert limits.num_micro_batches == 2
    gauge.used_bytes = 990
    step(engine, 64)
    assert engine.scheduler.limits is limits


def test_when_the_smallest_sweep_does_not_help_either_it_is_an_error(engine: Engine, gauge: Gauge) -> None:
    gauge.used_bytes = 1020  # pressure, but within the tolerance
    step(engine, 4 * 10)
    assert engine.scheduler.limits.max_num_batched_tokens == 16
    gauge.used_bytes = 1100
    with pytest.raises(BudgetError, match="the smallest sweep does not help"):
        step(engine, 4)
