"""Builds an engine: finds the model, pays for everything from the budgets, and puts the rooms together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.attention.grouped import GroupedAttention
from headrace.checkpoint.checkpoint import Checkpoint, read_config
from headrace.engine.engine import Engine
from headrace.engine.memory import (
    LIBRARY_BYTES,
    SMALLEST_SWEEP_TOKENS,
    CachePlan,
    SweepPlan,
    plan_cache,
    plan_sweep,
    smallest_bytes,
)
from headrace.engine.options import EngineOptions
from headrace.engine.weights import PlacedModel, keep_what_fits, least_stream_bytes, load_resident, open_stream
from headrace.errors import BudgetError, OptionError
from headrace.executor.contexts import ContextBuilder
from headrace.executor.executor import Executor
from headrace.executor.pools import build_pools
from headrace.executor.probe import WEIGHT_POINTS, ActivationProbe
from headrace.kv_cache.manager import KVCacheManager
from headrace.models.choices import choose_device, choose_dtype, dtype_of_config, slow_dtype_note
from headrace.models.defaults import read_generation_defaults
from headrace.models.layer_table import LayerTable, layer_table
from headrace.models.locate import locate_model
from headrace.models.skeleton import automatic_dtype, build_skeleton, read_model_config
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer, load_tokenizer
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import WeightMap, build_random_weight_map, build_weight_map
from headrace.sampling.parameters import GenerationDefaults
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.scheduler import Scheduler
from headrace.storage.budget import Budget
from headrace.storage.device_memory import default_limit_bytes
from headrace.storage.folders import parse_disk
from headrace.storage.governor import Governor
from headrace.storage.process_memory import (
    keep_freed_memory,
    release_freed_memory,
    resident_bytes,
)
from headrace.storage.throttle import Throttle
from headrace.units import format_bytes

BLOCK_TOKENS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """An engine that is ready, and what was resolved on the way; `close` ends its threads."""

    engine: Engine
    tokenizer: Tokenizer | WithoutTokenizer
    model_name: str
    description: str
    host: Budget
    device: Budget
    close: Callable[[], None]


def launch(options: EngineOptions) -> Launched:
    """Loads the model and returns its engine.

    Raises:
        UsageError: the model, an option or the memory that was given is not right; most faults are found before any
            weight is read.
    """
    path = locate_model(options.model, options.revision)
    device = choose_device(options.device)
    tokenizer = load_tokenizer(path, options.chat_template, optional=options.load_format == "dummy")
    keep_freed_memory()
    host, device_budget = _open_budgets(options, device)
    model, weights, dtype = _describe_weights(options, path, device, device_budget)
    table = layer_table(model.config)
    placed = _place_model(options, model, table, weights, dtype, host, device_budget, device)
    try:
        return _start(options, path, placed, table, weights, dtype, device, tokenizer, host, device_budget)
    except BaseException:
        placed.close()
        raise


def _start(
    options: EngineOptions,
    path: Path,
    placed: PlacedModel,
    table: LayerTable,
    weights: WeightMap,
    dtype: torch.dtype,
    device: torch.device,
    tokenizer: Tokenizer | WithoutTokenizer,
    host: Budget,
    budget: Budget,
) -> Launched:
    """Divides what the weights leave of the budget, and puts the engine together."""
    attention = GroupedAttention()
    probe = ActivationProbe(
        model=placed.model,
        attention=attention,
        device=device,
        dtype=dtype,
        block_tokens=BLOCK_TOKENS,
        points=placed.points,
        weights=placed.weights,
    )
    with torch.inference_mode():
        # The first run brings in code and caches, which stay; only the second shows what a sweep takes for itself.
        probe.measure(SMALLEST_SWEEP_TOKENS, SMALLEST_SWEEP_TOKENS)
        _settle(host)
        sweep = plan_sweep(
            table=table,
            budget=budget,
            dtype_bytes=dtype.itemsize,
            block_tokens=BLOCK_TOKENS,
            options=options,
            probe=probe.measure,
            settle=lambda: _settle(host),
            is_streamed=placed.stream is not None,
        )
        if placed.stream is not None:
            keep_what_fits(placed, table, weights, budget, sweep, BLOCK_TOKENS, dtype)
        cache = plan_cache(
            table=table,
            budget=budget,
            dtype_bytes=dtype.itemsize,
            block_tokens=BLOCK_TOKENS,
            options=options,
            sweep=sweep,
        )
        pools = build_pools(table, cache.num_blocks, BLOCK_TOKENS, dtype, device)
    contexts = ContextBuilder(
        groups=table.groups,
        block_tokens=BLOCK_TOKENS,
        pools=pools,
        attention=attention,
        device=device,
        waits=WEIGHT_POINTS,
    )
    engine = _assemble(options, placed, contexts, sweep, cache, host, tokenizer, path)
    return Launched(
        engine=engine,
        tokenizer=tokenizer,
        model_name=options.model,
        description=_describe(options, table, weights, device, dtype, placed, sweep, cache, budget)
        + slow_dtype_note(dtype, device)
        + _ignored_note(engine.defaults),
        host=host,
        device=budget,
        close=placed.close,
    )


def _assemble(
    options: EngineOptions,
    placed: PlacedModel,
    contexts: ContextBuilder,
    sweep: SweepPlan,
    plan: CachePlan,
    host: Budget,
    tokenizer: Tokenizer | WithoutTokenizer,
    path: Path,
) -> Engine:
    cache = KVCacheManager(
        placed.model.table.groups,
        num_blocks=plan.num_blocks,
        block_tokens=BLOCK_TOKENS,
        enable_prefix_caching=options.enable_prefix_caching,
    )
    limits = SweepLimits(
        max_num_seqs=sweep.max_num_seqs,
        max_num_batched_tokens=sweep.max_num_batched_tokens,
        max_micro_batch_tokens=sweep.micro_batch_tokens,
        num_micro_batches=options.num_micro_batches,
    )
    return Engine(
        scheduler=Scheduler(cache, limits),
        executor=Executor(model=placed.model, points=placed.points, contexts=contexts, weights=placed.weights),
        governor=Governor(budget=host),
        tokenizer=tokenizer,
        defaults=read_generation_defaults(path, tokenizer),
        max_model_len=plan.max_model_len,
        vocab_size=placed.model.table.vocab_size,
        seed=options.seed,
    )


def _open_budgets(options: EngineOptions, device: torch.device) -> tuple[Budget, Budget]:
    """Returns the budgets of host and device; without an accelerator they are one and the same."""
    if options.gpu_memory_bytes is not None and device.type == "cpu":
        raise OptionError("--gpu-memory was given, but the model runs on the CPU; give --memory, or --device cuda")
    limit = options.memory_bytes or default_limit_bytes(torch.device("cpu"))
    host = Budget(tier="host", limit_bytes=limit, option="--memory")
    if device.type == "cpu":
        return host, host
    limit = options.gpu_memory_bytes or default_limit_bytes(device)
    return host, Budget(tier="device", limit_bytes=limit, option="--gpu-memory")


def _describe_weights(
    options: EngineOptions, path: Path, device: torch.device, budget: Budget
) -> tuple[PreTrainedModel, WeightMap, torch.dtype]:
    """Builds the skeleton and finds where its weights come from; reads none."""
    if options.load_format == "dummy":
        layer_table(read_model_config(path))
        dtype = choose_dtype(options.dtype) or dtype_of_config(read_config(path))
        model = build_skeleton(path, dtype)
        return model, build_random_weight_map(model, options.seed), dtype
    checkpoint = Checkpoint.open(path)
    layer_table(read_model_config(path))  # refuses what cannot be run before it is built
    dtype = choose_dtype(options.dtype) or automatic_dtype(checkpoint, device, budget.limit_bytes)
    model = build_skeleton(path, dtype)
    return model, build_weight_map(model, checkpoint), dtype


def _place_model(
    options: EngineOptions,
    model: PreTrainedModel,
    table: LayerTable,
    weights: WeightMap,
    dtype: torch.dtype,
    host: Budget,
    device_budget: Budget,
    device: torch.device,
) -> PlacedModel:
    """Charges what is there already, then loads the weights, or prepares to stream them where they do not fit."""
    used = resident_bytes()
    smallest = smallest_bytes(table=table, dtype_bytes=dtype.itemsize, block_tokens=BLOCK_TOKENS, options=options)
    streams = device_budget is host and used + weights.num_bytes + smallest > host.limit_bytes
    try:
        if streams:
            host.require(
                f"Python with torch, the least part of {format_bytes(weights.num_bytes)} of weights that must be in "
                "memory at a time, and the smallest KV cache and sweep",
                used + least_stream_bytes(weights) + smallest,
            )
        elif device_budget is not host:
            host.require("Python with torch", used + LIBRARY_BYTES)
            device_budget.require(
                f"{format_bytes(weights.num_bytes)} of weights and the smallest KV cache and sweep",
                weights.num_bytes + smallest,
            )
    except BudgetError as error:
        here = "" if device_budget is host else " This version streams weights with --device cpu only."
        raise BudgetError(f"the model does not fit: {error}. (Nothing was loaded.{here})") from None
    if streams:
        host.charge("Python, torch and tokenizer", used)
        rate = options.disk_bytes_per_second
        throttle = None if rate is None else Throttle(rate)
        return open_stream(model, table, weights, host, parse_disk(options.disk), throttle)
    host.charge("Python, torch and tokenizer", used)
    device_budget.charge("weights", weights.num_bytes)
    return load_resident(model, table, weights, device)


def _settle(host: Budget) -> None:
    """Charges what torch and its libraries have brought in since the start and keep."""
    release_freed_memory()
    host.settle("libraries", resident_bytes())


def _describe(
    options: EngineOptions,
    table: LayerTable,
    weights: WeightMap,
    device: torch.device,
    dtype: torch.dtype,
    placed: PlacedModel,
    sweep: SweepPlan,
    cache: CachePlan,
    budget: Budget,
) -> str:
    streamed = f" ({format_bytes(placed.streamed_bytes)} of them read in every sweep)" if placed.streamed_bytes else ""
    return (
        f"{options.model}: {table.model_type}, {str(dtype).removeprefix('torch.')} on {device}; "
        f"weights {format_bytes(weights.num_bytes)}{streamed}, KV cache {format_bytes(cache.kv_bytes)}, "
        f"{budget.option} {format_bytes(budget.limit_bytes)}; context {cache.max_model_len:,} tokens, "
        f"{sweep.max_num_seqs} rows and {sweep.max_num_batched_tokens:,} tokens at a time"
    )


def _ignored_note(defaults: GenerationDefaults) -> str:
    """Names what the model's own file asks for and this version does not do: tokens differ from transformers' there."""
    names = ", ".join(defaults.ignored)
    return f"; generation_config.json sets {names}, which is not followed" if names else ""
