"""Divides what a budget has left, once the weights are in, between activations and the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.engine.options import EngineOptions
from headrace.errors import OptionError
from headrace.executor.activations import NUM_SLOTS, slot_bytes
from headrace.executor.kv_stream import NUM_SLABS
from headrace.executor.pool_plan import GroupDemand, PoolPlanner
from headrace.executor.probe import ActivationPeak
from headrace.models.layer_table import AttentionSpec, LayerTable, StateSpec
from headrace.storage.budget import Budget
from headrace.units import KIB, MIB

DEFAULT_NUM_SEQS = 256
DEFAULT_BATCHED_TOKENS = 1024
STREAMED_BATCHED_TOKENS = 4096
"""Tokens over which a streamed sweep spreads the reading of weights."""
SMALLEST_SWEEP_TOKENS = 16
UNBOUNDED_CONTEXT = 32_768
"""Context of models that have no limit of their own (state models, ALiBi), unless --max-model-len says otherwise."""
BOOKKEEPING_BYTES = 4 * KIB
"""Python's numbers for the tokens of one block: in its sequence, in the tables, and in the prefix tree."""
LIBRARY_BYTES = 90 * MIB
"""Code and caches that torch and its libraries bring in when a model first runs; what they really take is measured."""
_SHORTEST_CONTEXT = 64
TYPICAL_TOKENS = 2048
_WAITING_NUMBERS = 3
_REMAINING_NUMBERS = 1.25
"""Of a token's hidden states: the last ones, while it waits at the head, and its rotary angles."""
_ACTIVATION_SHARE = 1 / 3
"""Sweeps are made smaller rather than that their activations take more than this part of what the weights leave."""
_WAITING_SHARE = 1 / 8
"""Of what is free then, for activations that wait on the device: rows in flight, and their KV, matter more."""
_STATE_COPIES = 9
"""Of the states of a sweep's rows, while a layer computes new ones: Mamba-2 in bfloat16 takes 8.7."""
_SAMPLING_BYTES = 32 * MIB
_SPARE_LOGITS = 32
"""Of tokens that are guessed while weights are read."""

Probe = Callable[[int, int], ActivationPeak]
"""(tokens of a sweep, sampled rows) -> bytes to reserve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingBelow:
    """Memory for activations that wait on the host of a device, which has been charged on both sides.

    Attributes:
        slot_bytes: of the device, for those of a micro-batch on their way; there are a few.
        host_bytes: for those of a sweep.
    """

    slot_bytes: int
    host_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """The largest sweep, whose memory has been charged.

    Attributes:
        context_tokens: the longest row that it was measured for.
        max_num_logits: tokens whose logits it computes: one of every row, and some more where guesses may pay.
        micro_batch_tokens: what runs at a time; other tokens of a sweep wait, and keep what goes on to a next layer.
        below: where they keep that, if not on the device.
    """

    context_tokens: int
    max_num_seqs: int
    max_num_logits: int
    max_num_batched_tokens: int
    micro_batch_tokens: int
    activation_bytes: int
    below: WaitingBelow | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePlan:
    """The KV cache, which has been charged, and the longest row that fits into it."""

    max_model_len: int
    num_blocks: tuple[int, ...]
    kv_bytes: int


def smallest_bytes(
    *, table: LayerTable, dtype_bytes: int, block_tokens: int, options: EngineOptions, kv_below: bool = False
) -> int:
    """Returns what an engine needs at least, beside Python and weights: an estimate, rather too high than too low.

    Args:
        kv_below: KV may lie below the device, but for that of the layers that are attended over.

    Raises:
        OptionError: `max_model_len` is beyond what the model was made for, or `kv_cache_dtype` given to one without KV.
    """
    num_tokens, context = SMALLEST_SWEEP_TOKENS, needed_context(table, options)
    attention = [layer.memory for layer in table.layers if isinstance(layer.memory, AttentionSpec)]
    if options.kv_codec is not None and not attention:
        raise OptionError(
            f"kv_cache_dtype is {options.kv_cache_dtype}, but a model of type {table.model_type} keeps no keys and "
            "values; leave it out"
        )
    widest = max((spec.num_kv_heads * (spec.key_width + spec.value_width) for spec in attention), default=0)
    token_bytes = max((spec.token_bytes(dtype_bytes, options.kv_codec) for spec in attention), default=0)
    num_heads = max((table.hidden_size // spec.key_width + 1 for spec in attention), default=0)
    activations = 4 * num_tokens * 32 * table.hidden_size + 4 * context * (widest + 2 * num_heads * num_tokens)
    states = max(
        (layer.memory.num_bytes(dtype_bytes) for layer in table.layers if isinstance(layer.memory, StateSpec)),
        default=0,
    )
    activations += _STATE_COPIES * num_tokens * states
    logits = 8 * num_tokens * table.vocab_size + min(_SAMPLING_BYTES, 32 * num_tokens * table.vocab_size)
    kv = _planner(table, dtype_bytes, block_tokens, num_tokens, options).bytes_for(1, context)
    if kv_below and options.kv_on_device is None:
        rest = _planner(table, dtype_bytes, block_tokens, num_tokens, options, _attention_layers(table))
        kv = min(kv, rest.bytes_for(1, context) + NUM_SLABS * (context + block_tokens) * token_bytes)
    return LIBRARY_BYTES + activations + logits + kv


def plan_sweep(
    *,
    table: LayerTable,
    budget: Budget,
    dtype_bytes: int,
    block_tokens: int,
    options: EngineOptions,
    probe: Probe,
    settle: Callable[[], None],
    is_streamed: bool,
    host_budget: Budget | None = None,
) -> SweepPlan:
    """Measures activations and charges them.

    Args:
        settle: charges what a probe has left behind.
        is_streamed: every sweep reads weights, so that it should have many tokens: several micro-batches' worth.
        host_budget: of a device's host, where waiting micro-batches may keep their activations.

    Raises:
        BudgetError: not even the smallest sweep fits.
        OptionError: `max_model_len` is beyond what the model was made for.
    """
    wanted_context, least_context = _wanted_context(table, options), needed_context(table, options)
    smallest = _planner(table, dtype_bytes, block_tokens, SMALLEST_SWEEP_TOKENS, options)
    useful_context = max(least_context, min(wanted_context, TYPICAL_TOKENS))
    num_spare = _SPARE_LOGITS if is_streamed and options.speculate else 0
    micro_batch, num_seqs, num_logits, measured = _choose_sweep(budget, options, probe, useful_context, num_spare)
    room = int(_ACTIVATION_SHARE * budget.free_bytes) - measured.sweep_bytes
    longest = smallest.longest_sequence(int((1 - _ACTIVATION_SHARE) * budget.free_bytes), wanted_context)
    context = max(least_context, min(longest, int(room / measured.bytes_per_position)))
    peak = measured.at(context)
    settle()
    budget.charge("activations", peak)
    bytes_per_token, share = _waiting_bytes(table, dtype_bytes), options.activations_on_device
    wanted = STREAMED_BATCHED_TOKENS if is_streamed and options.max_num_batched_tokens is None else micro_batch
    fitting = int(_WAITING_SHARE * budget.free_bytes) // bytes_per_token // micro_batch * micro_batch
    num_tokens, below = min(wanted, micro_batch + fitting), None
    waiting = (num_tokens - micro_batch) * bytes_per_token
    if host_budget is not None and share != 1 and (share is not None or num_tokens < wanted):
        demand = _below_demand(wanted, micro_batch, bytes_per_token, table.hidden_size * dtype_bytes, options)
        fits = max(demand.device_bytes / max(1, budget.free_bytes), demand.host_bytes / max(1, host_budget.free_bytes))
        spares = demand.device_bytes < (wanted - micro_batch) * bytes_per_token
        if share is not None or (fits <= _ACTIVATION_SHARE and spares):
            host_budget.charge("waiting micro-batches", demand.host_bytes)
            num_tokens, waiting = wanted, demand.device_bytes
            below = WaitingBelow(slot_bytes=demand.slot_bytes, host_bytes=demand.host_bytes)
    if waiting:
        budget.charge("waiting micro-batches", waiting)
        peak += waiting
    return SweepPlan(
        context_tokens=context,
        max_num_seqs=num_seqs,
        max_num_logits=num_logits,
        max_num_batched_tokens=num_tokens,
        micro_batch_tokens=micro_batch,
        activation_bytes=peak,
        below=below,
    )


def plan_cache(
    *,
    table: LayerTable,
    budget: Budget,
    dtype_bytes: int,
    block_tokens: int,
    options: EngineOptions,
    sweep: SweepPlan,
    elsewhere: frozenset[int] = frozenset(),
    elsewhere_bytes: int = 0,
) -> CachePlan:
    """Gives the KV cache what is left.

    Args:
        elsewhere: layers whose KV takes no memory, but up to `elsewhere_bytes` in another place.

    Raises:
        BudgetError: that is too little for a row of the shortest useful context.
    """
    least_context = needed_context(table, options)
    planner = _planner(table, dtype_bytes, block_tokens, sweep.max_num_batched_tokens, options, elsewhere)
    budget.require(f"the KV of a row of {least_context} tokens", planner.bytes_for(1, least_context))
    context = planner.longest_sequence(budget.free_bytes, sweep.context_tokens)
    typical = typical_tokens(options)
    num_blocks = planner.split(
        budget.free_bytes,
        max_sequences=sweep.max_num_seqs,
        typical_tokens=min(context, typical),
        max_tokens=context,
    )
    if elsewhere:
        others = _others(table, elsewhere)
        there = _planner(table, dtype_bytes, block_tokens, sweep.max_num_batched_tokens, options, others)
        context = there.longest_sequence(elsewhere_bytes, context)
        most = there.split(
            elsewhere_bytes,
            max_sequences=sweep.max_num_seqs,
            typical_tokens=min(context, typical),
            max_tokens=context,
        )
        num_blocks = [min(pair) for pair in zip(num_blocks, most, strict=True)]
    kv_bytes = sum(count * demand.block_bytes for count, demand in zip(num_blocks, planner.demands, strict=True))
    budget.charge("KV cache", kv_bytes)
    return CachePlan(max_model_len=context, num_blocks=tuple(num_blocks), kv_bytes=kv_bytes)


def typical_tokens(options: EngineOptions) -> int:
    """Returns what a row is reckoned to have at its end, prompt and answer."""
    return options.typical_row_tokens or TYPICAL_TOKENS


def needed_context(table: LayerTable, options: EngineOptions) -> int:
    """Returns the context below which no engine starts: all that was asked for, or what makes it useful at all."""
    wanted = _wanted_context(table, options)
    return wanted if options.max_model_len is not None else min(wanted, _SHORTEST_CONTEXT)


def row_bytes(
    *,
    table: LayerTable,
    dtype_bytes: int,
    block_tokens: int,
    options: EngineOptions,
    sweep: SweepPlan,
    num_tokens: int,
) -> int:
    """Returns what the KV of one row of `num_tokens` takes."""
    return _planner(table, dtype_bytes, block_tokens, sweep.max_num_batched_tokens, options).bytes_for(1, num_tokens)


def _waiting_bytes(table: LayerTable, dtype_bytes: int) -> int:
    """What a token keeps between two layers: hidden states, a residual or a copy in fp32, and its rotary angles."""
    return (_WAITING_NUMBERS * dtype_bytes + 4) * table.hidden_size


@dataclass(frozen=True, kw_only=True, slots=True)
class _BelowDemand:
    """What activations that wait on the host take."""

    slot_bytes: int
    device_bytes: int
    host_bytes: int


def _below_demand(
    num_tokens: int, micro_batch: int, bytes_per_token: int, hidden_bytes: int, options: EngineOptions
) -> _BelowDemand:
    """Slots, what stays because it was asked for, and what all keep: the last hidden states before the head, mainly."""
    each = min(micro_batch, -(-num_tokens // options.num_micro_batches))
    staying = round((options.activations_on_device or 0.0) * -(-num_tokens // each))
    waiting = num_tokens - micro_batch
    slot = slot_bytes(each, bytes_per_token)
    kept = int(waiting * _REMAINING_NUMBERS * hidden_bytes) + min(waiting, staying * each) * bytes_per_token
    return _BelowDemand(
        slot_bytes=slot, device_bytes=NUM_SLOTS * slot + kept, host_bytes=slot_bytes(num_tokens, bytes_per_token)
    )


def _attention_layers(table: LayerTable) -> frozenset[int]:
    return frozenset(index for index, layer in enumerate(table.layers) if isinstance(layer.memory, AttentionSpec))


def _others(table: LayerTable, layers: frozenset[int]) -> frozenset[int]:
    return frozenset(range(len(table.layers))) - layers


def _planner(
    table: LayerTable,
    dtype_bytes: int,
    block_tokens: int,
    sweep_tokens: int,
    options: EngineOptions,
    elsewhere: frozenset[int] = frozenset(),
) -> PoolPlanner:
    """Returns a planner of what blocks take in all layers but those in `elsewhere`."""
    demands = []
    for group in table.groups:
        share = 1 - len(elsewhere.intersection(group.layers)) / len(group.layers)
        num_bytes = round(share * table.block_bytes(group, block_tokens, dtype_bytes, options.kv_codec))
        demands.append(GroupDemand(group=group, block_bytes=num_bytes + BOOKKEEPING_BYTES))
    return PoolPlanner(demands=demands, block_tokens=block_tokens, sweep_tokens=sweep_tokens)


def _wanted_context(table: LayerTable, options: EngineOptions) -> int:
    limit = table.max_positions
    if options.max_model_len is None:
        return limit or UNBOUNDED_CONTEXT
    if limit is not None and options.max_model_len > limit:
        raise OptionError(f"max_model_len is {options.max_model_len}; this model was made for at most {limit} tokens")
    return options.max_model_len


def _choose_sweep(
    budget: Budget, options: EngineOptions, probe: Probe, context: int, num_spare_logits: int
) -> tuple[int, int, int, ActivationPeak]:
    """Returns tokens, rows and logits of the largest sweep whose activations leave room for KV, and what they take.

    Sizes are tried from the smallest up, none of which could take more than there is: what a sweep takes grows at most
    in proportion to its tokens.
    """
    wanted_tokens = options.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS
    wanted_seqs = options.max_num_seqs or min(DEFAULT_NUM_SEQS, options.expected_rows or DEFAULT_NUM_SEQS)
    room = int(_ACTIVATION_SHARE * budget.free_bytes)
    wanted_logits = wanted_seqs + min(wanted_seqs, num_spare_logits)
    num_tokens = min(SMALLEST_SWEEP_TOKENS, wanted_tokens)
    peak = probe(num_tokens, min(num_tokens, wanted_logits))
    while num_tokens < wanted_tokens and 2 * peak.at(context) <= budget.free_bytes:
        larger = min(wanted_tokens, num_tokens * max(2, room // max(1, peak.at(context))))
        larger_peak = probe(larger, min(larger, wanted_logits))
        if larger_peak.at(context) > room:
            break
        num_tokens, peak = larger, larger_peak
    return num_tokens, min(num_tokens, wanted_seqs), min(num_tokens, wanted_logits), peak
