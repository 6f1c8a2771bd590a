"""Builds an engine: finds the model, pays for everything from the budgets, and puts the rooms together."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from headrace.attention.paged import best_attention
from headrace.compression import packed_linear
from headrace.compression.packed_linear import PackedLinear
from headrace.engine.division import Division, KVBelow, divide, move_kv_below
from headrace.engine.engine import Engine
from headrace.engine.memory import (
    LIBRARY_BYTES,
    SMALLEST_SWEEP_TOKENS,
    CachePlan,
    SweepPlan,
    plan_cache,
    plan_sweep,
    smallest_bytes,
    typical_tokens,
)
from headrace.engine.model_work import ModelWork, model_work
from headrace.engine.moving import KVMoving
from headrace.engine.options import EngineOptions
from headrace.engine.placed_model import PlacedModel, Streams, load_resident
from headrace.engine.precision import DescribedModel, describe_model, is_too_large
from headrace.engine.streaming import least_stream_bytes, open_stream
from headrace.engine.tiers import Tiers, open_tiers
from headrace.errors import BudgetError
from headrace.executor.activations import ActivationsBelow
from headrace.executor.contexts import ContextBuilder
from headrace.executor.executor import Executor, nothing
from headrace.executor.pools import build_pools
from headrace.executor.probe import ActivationProbe
from headrace.kernels.library import library
from headrace.kv_cache.block_bytes import BlockBytes
from headrace.kv_cache.manager import KVCacheManager
from headrace.kv_cache.pools import KVPools
from headrace.models import interleaved_layers
from headrace.models.choices import slow_dtype_note
from headrace.models.defaults import read_generation_defaults
from headrace.models.interleaved_layers import InterleavedLinear
from headrace.models.locate import locate_model
from headrace.models.observation import layer_table
from headrace.models.packed_layers import packed_codec
from headrace.models.products import products
from headrace.models.recorded_layers import MOST_TOKENS, arena_bytes, record_layers
from headrace.models.remote_code import register_remote_code
from headrace.models.shared_inputs import share_inputs
from headrace.models.skeleton import read_model_config
from headrace.models.takeover import EngineModel
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer, check_vocabulary, load_tokenizer
from headrace.models.weight_map import WeightMap
from headrace.planner.filling import Filling
from headrace.planner.preemption import SweepSpeed
from headrace.sampling.guidance import Guidance
from headrace.sampling.parameters import GenerationDefaults
from headrace.schedule.steps import serial_steps, sweep_steps
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.scheduler import Scheduler
from headrace.storage.budget import Budget
from headrace.storage.governor import Governor
from headrace.storage.process_memory import (
    keep_freed_memory,
    release_freed_memory,
    resident_bytes,
)
from headrace.units import format_bytes

BLOCK_TOKENS = 32
_ARENA_SHARE = 1 / 16
"""Of what weights and activations leave, at most so much goes to what makes few tokens faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """An engine that is ready, and what was resolved on the way; `close` ends its threads."""

    engine: Engine
    tokenizer: Tokenizer | WithoutTokenizer
    model_name: str
    description: str
    work: ModelWork
    host: Budget
    device: Budget
    close: Callable[[], None] = lambda: None


def launch(options: EngineOptions) -> Launched:
    """Loads the model and returns its engine.

    Raises:
        UsageError: the model, an option or the memory that was given is not right; most faults are found before any
            weight is read.
    """
    path = locate_model(options.model, options.revision)
    with ExitStack() as opened:
        return launch_on(open_tiers(options, opened), options, path, opened)


def launch_on(tiers: Tiers, options: EngineOptions, path: Path, opened: ExitStack) -> Launched:
    """Does the same with the model in folder `path` on tiers that are there, and are closed with `opened`."""
    if options.trust_remote_code:
        register_remote_code(path)
    read_model_config(path)  # transformers reads it for the tokenizer, too, and would have that at fault
    tokenizer = load_tokenizer(
        path,
        options.chat_template,
        optional=options.load_format == "dummy",
        trust_remote_code=options.trust_remote_code,
    )
    defaults = read_generation_defaults(path, tokenizer)
    keep_freed_memory()
    described = describe_model(options, path, tiers, BLOCK_TOKENS)
    model, weights, dtype = described.model, described.weights, described.dtype
    check_vocabulary(path, tokenizer, model.config.get_text_config().vocab_size)
    placed = _place_model(options, described, tiers)
    opened.callback(placed.close)
    launched = start(options, defaults, placed, weights, dtype, tokenizer, tiers)
    opened.callback(launched.engine.guidance.close)
    return replace(launched, close=opened.pop_all().close)


def start(
    options: EngineOptions,
    defaults: GenerationDefaults,
    placed: PlacedModel,
    weights: WeightMap,
    dtype: torch.dtype,
    tokenizer: Tokenizer | WithoutTokenizer,
    tiers: Tiers,
) -> Launched:
    """Divides what the weights leave of the budgets, and puts the engine together."""
    attention, table, budget = best_attention(), placed.model.table, tiers.device_budget
    modules = list(placed.model.modules())
    multiplying = products(dtype, tiers.device, modules)
    share_inputs(modules, PackedLinear, packed_linear.multiply, lambda layer: (layer.in_features, layer.codec))
    share_inputs(
        modules, InterleavedLinear, interleaved_layers.multiply, lambda layer: (layer.in_features, layer.weight.dtype)
    )
    probe = ActivationProbe(
        model=placed.model,
        attention=attention,
        device=tiers.device,
        dtype=dtype,
        block_tokens=BLOCK_TOKENS,
        points=placed.points,
        weights=placed.weights,
        experts=placed.experts,
        products=multiplying,
        codec=options.kv_codec,
    )
    with torch.inference_mode():
        # The first run brings in code and caches, which stay; only the second shows what a sweep takes for itself.
        probe.measure(SMALLEST_SWEEP_TOKENS, SMALLEST_SWEEP_TOKENS)
        tiers.settle()
        sweep = plan_sweep(
            table=table,
            budget=budget,
            dtype_bytes=dtype.itemsize,
            block_tokens=BLOCK_TOKENS,
            options=options,
            probe=probe.measure,
            settle=tiers.settle,
            is_streamed=placed.streams is not None,
            host_budget=None if tiers.are_one else tiers.host_budget,
        )
        if sweep.below is not None:
            assert tiers.link is not None, "without a device there is nothing below it but the disk"
            placed.activations = ActivationsBelow(
                tiers.link,
                slot_bytes=sweep.below.slot_bytes,
                host_bytes=sweep.below.host_bytes,
                share_on_device=options.activations_on_device or 0.0,
            )
        division = divide(
            placed, tiers, weights=weights, options=options, sweep=sweep, block_tokens=BLOCK_TOKENS, dtype=dtype
        )
        below = division.kv
        tiers.settle()  # what measuring rates has left behind
        found = library()
        if placed.streams is None and not below.layers and tiers.device.type == "cpu" and found is not None:
            _record_layers(found, placed.model, sweep, budget, dtype)
        cache = plan_cache(
            table=table,
            budget=budget,
            dtype_bytes=dtype.itemsize,
            block_tokens=BLOCK_TOKENS,
            options=options,
            sweep=sweep,
            elsewhere=below.layers,
            elsewhere_bytes=below.num_bytes,
        )
        if below.layers:
            move_kv_below(placed, tiers, below, cache, BLOCK_TOKENS, dtype, options.kv_codec)
        pools = build_pools(table, cache.num_blocks, BLOCK_TOKENS, dtype, tiers.device, below.layers, options.kv_codec)
    contexts = ContextBuilder(
        groups=table.groups,
        block_tokens=BLOCK_TOKENS,
        pools=pools,
        attention=attention,
        device=tiers.device,
    )
    engine = _assemble(
        options, placed, contexts, pools, sweep, cache, division, multiplying, tokenizer, defaults, tiers
    )
    return Launched(
        engine=engine,
        tokenizer=tokenizer,
        model_name=options.model,
        description=_describe(options, weights, dtype, placed, sweep, cache, below, tiers)
        + slow_dtype_note(dtype, tiers.device)
        + _ignored_note(engine.defaults),
        work=model_work(weights, table, dtype=dtype, device=tiers.device, kv_codec=options.kv_codec),
        host=tiers.host_budget,
        device=tiers.device_budget,
    )


def _record_layers(
    found: ctypes.CDLL, model: EngineModel, sweep: SweepPlan, budget: Budget, dtype: torch.dtype
) -> None:
    num_tokens = min(MOST_TOKENS, sweep.max_num_batched_tokens)
    num_bytes = arena_bytes(model, dtype, num_tokens)
    if num_bytes <= _ARENA_SHARE * budget.free_bytes:
        budget.charge("what recorded layers write", num_bytes)
        record_layers(found, model, num_bytes)


def _assemble(
    options: EngineOptions,
    placed: PlacedModel,
    contexts: ContextBuilder,
    pools: KVPools,
    sweep: SweepPlan,
    plan: CachePlan,
    division: Division,
    multiplying: AbstractContextManager[object],
    tokenizer: Tokenizer | WithoutTokenizer,
    defaults: GenerationDefaults,
    tiers: Tiers,
) -> Engine:
    cache = KVCacheManager(
        placed.model.table.groups,
        num_blocks=plan.num_blocks,
        block_tokens=BLOCK_TOKENS,
        enable_prefix_caching=options.enable_prefix_caching,
    )
    below, filling = division.kv, _filling(placed, division, cache, sweep, options)
    limits = SweepLimits(
        max_num_seqs=sweep.max_num_seqs,
        max_num_logits=sweep.max_num_logits,
        max_num_batched_tokens=sweep.max_num_batched_tokens,
        max_micro_batch_tokens=sweep.micro_batch_tokens,
        num_micro_batches=options.num_micro_batches,
        max_micro_batch_blocks=below.slab_blocks if below.layers else sys.maxsize,
        filling_tokens=sys.maxsize if filling is None else filling.num_tokens,
    )
    scheduler, speed = Scheduler(cache, limits), SweepSpeed()
    governor = Governor(budget=tiers.host_budget, measure=tiers.host_resident_bytes)
    if tiers.device.type == "cpu" and not below.layers:
        moving = KVMoving(cache=cache, blocks=BlockBytes(pools, len(plan.num_blocks)), tiers=tiers, speed=speed)
        placed.moves = moving
        scheduler = Scheduler(cache, limits, moving.is_faster)
    # Where nothing is to be brought, micro-batches wait nowhere; but traces show what each layer takes.
    waits = placed.streams is not None or below.layers or options.trace is not None
    executor = Executor(
        model=placed.model,
        points=placed.points if waits else (),
        contexts=contexts,
        weights=placed.weights,
        experts=placed.experts,
        kv=placed.kv,
        activations=placed.activations,
        moves=placed.moves,
        schedule=sweep_steps if options.overlap else serial_steps,
        trace=tiers.trace,
        products=multiplying,
        # Where all weights stay, a layer of a few rows is done in a fraction of a millisecond.
        relieve=nothing if placed.streams is None else governor.relieve,
    )
    return Engine(
        scheduler=scheduler,
        executor=executor,
        governor=governor,
        tokenizer=tokenizer,
        guidance=Guidance(
            tokenizer,
            num_tokens=placed.model.table.vocab_size,
            end_token_ids=defaults.eos_token_ids,
            trace=tiers.trace,
        ),
        defaults=defaults,
        max_model_len=plan.max_model_len,
        vocab_size=placed.model.table.vocab_size,
        seed=options.seed,
        speed=speed,
        filling=filling,
        speculate=options.speculate,
        length_rule=placed.model.table.length_rule,
        give_back=pools.give_back if tiers.device.type == "cpu" else lambda blocks: None,
    )


def _filling(
    placed: PlacedModel, division: Division, cache: KVCacheManager, sweep: SweepPlan, options: EngineOptions
) -> Filling | None:
    streams = placed.streams
    if streams is None:
        return None
    num_rows = min(sweep.max_num_seqs, cache.available_tokens // typical_tokens(options))
    return Filling(division.filling_tokens, streams.so_far, num_rows=num_rows)


def _place_model(options: EngineOptions, described: DescribedModel, tiers: Tiers) -> PlacedModel:
    """Charges what is there already, then loads the weights, or prepares to stream them where they do not fit."""
    model, weights = described.model, described.weights
    table = layer_table(model.config)
    host, device = tiers.host_budget, tiers.device_budget
    streams = options.asks_to_stream or is_too_large(described, options, tiers, BLOCK_TOKENS)
    release_freed_memory()
    used = resident_bytes()
    base = used if tiers.are_one else 0
    smallest = partial(
        smallest_bytes, table=table, dtype_bytes=described.dtype.itemsize, block_tokens=BLOCK_TOKENS, options=options
    )
    try:
        if not tiers.are_one:
            host.require("Python with torch", used + LIBRARY_BYTES)
        if streams:
            device.require(
                f"{'Python with torch, ' if tiers.are_one else ''}the least part of "
                f"{format_bytes(weights.num_bytes)} of weights that must be in memory at a time, and the smallest KV "
                "cache and sweep",
                base + least_stream_bytes(model, weights) + smallest(kv_below=True),
            )
    except BudgetError as error:
        raise BudgetError(f"the model does not fit: {error}. (Nothing was loaded.)") from None
    host.charge("Python, torch and tokenizer", used)
    if streams:
        return open_stream(model, table, weights, tiers)
    device.charge("weights", weights.num_bytes)
    return load_resident(model, table, weights, described.dtype, tiers.device)


def _describe(
    options: EngineOptions,
    weights: WeightMap,
    dtype: torch.dtype,
    placed: PlacedModel,
    sweep: SweepPlan,
    cache: CachePlan,
    below: KVBelow,
    tiers: Tiers,
) -> str:
    table, budget = placed.model.table, tiers.device_budget
    streamed = "" if placed.streams is None else _describe_streams(placed.streams)
    places = (("host", below.on_host), ("disk", below.on_disk))
    elsewhere = ", ".join(f"{len(layers)} on {tier}" for tier, layers in places if layers)
    kv = f" (and, of {len(table.layers)} layers, {elsewhere})" if elsewhere else ""
    name = str(dtype).removeprefix("torch.")
    kept_in = options.kv_codec.name if options.kv_codec else name
    return (
        f"{options.model}: {table.model_type}, {_describe_precision(weights, dtype)} on {tiers}; "
        f"weights {format_bytes(weights.num_bytes)}{streamed}, "
        f"KV cache {format_bytes(cache.kv_bytes)} in {kept_in}{kv}, "
        f"{budget.option} {format_bytes(budget.limit_bytes)}; context {cache.max_model_len:,} tokens, "
        f"{sweep.max_num_seqs} rows and {sweep.max_num_batched_tokens:,} tokens at a time"
    )


def _describe_precision(weights: WeightMap, dtype: torch.dtype) -> str:
    name, codec = str(dtype).removeprefix("torch."), packed_codec(weights)
    return name if codec is None else f"{codec.label} with {name}"


def _describe_streams(streams: Streams) -> str:
    read = []
    if streams.layers.bytes_per_sweep:
        read.append(f"{format_bytes(streams.layers.bytes_per_sweep)} of them read in every sweep")
    if streams.experts is not None and streams.experts.num_bytes:
        read.append(f"of {format_bytes(streams.experts.num_bytes)} of experts those that its tokens need")
    return f" ({', and '.join(read)})" if read else ""


def _ignored_note(defaults: GenerationDefaults) -> str:
    """Names what the model's own file asks for and this version does not do: tokens differ from transformers' there."""
    names = ", ".join(defaults.ignored)
    return f"; generation_config.json sets {names}, which is not followed" if names else ""
