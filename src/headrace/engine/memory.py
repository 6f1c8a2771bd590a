"""Divides what a budget has left, once the weights are in, between activations and the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.engine.options import EngineOptions
from headrace.errors import BudgetError, OptionError
from headrace.executor.pool_plan import GroupDemand, PoolPlanner
from headrace.models.layer_table import LayerTable
from headrace.storage.budget import Budget
from headrace.units import format_bytes

DEFAULT_NUM_SEQS = 256
DEFAULT_BATCHED_TOKENS = 1024
SMALLEST_SWEEP_TOKENS = 16
UNBOUNDED_CONTEXT = 32_768
"""Context of models that have no limit of their own (state models, ALiBi), unless --max-model-len says otherwise."""
_SHORTEST_CONTEXT = 64
_TYPICAL_TOKENS = 2048
_FIRST_PROBE_TOKENS = 64
_ACTIVATION_SHARE = 1 / 3
"""Sweeps are made smaller rather than that their activations take more than this part of what the weights leave."""

Probe = Callable[[int, int], int]
"""(tokens, sampled rows) of a micro-batch -> bytes that it needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Sizes that fit together and into the budget; everything in it has been charged."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: tuple[int, ...]
    activation_bytes: int
    kv_bytes: int


def plan_memory(
    *, table: LayerTable, budget: Budget, dtype_bytes: int, block_tokens: int, options: EngineOptions, probe: Probe
) -> MemoryPlan:
    """Measures activations, and gives the KV cache what they leave.

    Raises:
        BudgetError: not even the smallest sweep over the shortest useful context fits.
        OptionError: `max_model_len` is beyond what the model was made for.
    """
    wanted_context = _wanted_context(table, options)
    num_tokens, num_seqs, activations = _choose_sweep(budget, options, probe)
    budget.charge("activations", activations)
    planner = PoolPlanner(
        demands=[
            GroupDemand(group=group, block_bytes=table.block_bytes(group, block_tokens, dtype_bytes))
            for group in table.groups
        ],
        block_tokens=block_tokens,
        sweep_tokens=num_tokens,
    )
    context = planner.longest_sequence(budget.free_bytes, wanted_context)
    needed = wanted_context if options.max_model_len is not None else min(wanted_context, _SHORTEST_CONTEXT)
    if context < needed:
        missing = planner.bytes_for(1, needed)
        raise BudgetError(
            f"a row of {needed} tokens needs {format_bytes(missing)} for its KV, but of {budget.option} "
            f"{format_bytes(budget.limit_bytes)} only {format_bytes(max(0, budget.free_bytes))} is left "
            f"({budget.ledger()}); give more with {budget.option}, or less with --max-model-len"
        )
    num_blocks = planner.split(
        budget.free_bytes,
        max_sequences=num_seqs,
        typical_tokens=min(context, _TYPICAL_TOKENS),
        max_tokens=context,
    )
    kv_bytes = sum(count * demand.block_bytes for count, demand in zip(num_blocks, planner.demands, strict=True))
    budget.charge("KV cache", kv_bytes)
    return MemoryPlan(
        max_model_len=context,
        max_num_seqs=num_seqs,
        max_num_batched_tokens=num_tokens,
        num_blocks=tuple(num_blocks),
        activation_bytes=activations,
        kv_bytes=kv_bytes,
    )


def _wanted_context(table: LayerTable, options: EngineOptions) -> int:
    limit = table.max_positions
    if options.max_model_len is None:
        return limit or UNBOUNDED_CONTEXT
    if limit is not None and options.max_model_len > limit:
        raise OptionError(f"max_model_len is {options.max_model_len}; this model was made for at most {limit} tokens")
    return options.max_model_len


def _choose_sweep(budget: Budget, options: EngineOptions, probe: Probe) -> tuple[int, int, int]:
    """Returns tokens and rows of the largest sweep whose activations leave room for KV, and their bytes."""
    num_tokens = options.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS
    num_seqs = min(options.max_num_seqs or DEFAULT_NUM_SEQS, num_tokens)
    first = min(_FIRST_PROBE_TOKENS, num_tokens)
    room = _ACTIVATION_SHARE * budget.free_bytes
    estimate = probe(first, min(num_seqs, first))
    while num_tokens > SMALLEST_SWEEP_TOKENS and estimate * num_tokens / first > room:
        num_tokens //= 2
    num_seqs = min(num_seqs, num_tokens)
    return num_tokens, num_seqs, probe(num_tokens, num_seqs)
