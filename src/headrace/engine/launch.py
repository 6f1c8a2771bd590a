"""Builds an engine: finds the model, pays for everything from the budgets, and puts the rooms together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headrace.attention.grouped import GroupedAttention
from headrace.checkpoint.checkpoint import Checkpoint, read_config
from headrace.engine.engine import Engine
from headrace.engine.memory import LIBRARY_BYTES, SMALLEST_SWEEP_TOKENS, MemoryPlan, plan_memory, smallest_bytes
from headrace.engine.options import EngineOptions
from headrace.errors import BudgetError, OptionError
from headrace.executor.contexts import ContextBuilder
from headrace.executor.executor import Executor
from headrace.executor.pools import build_pools
from headrace.executor.probe import ActivationProbe
from headrace.kv_cache.manager import KVCacheManager
from headrace.models.choices import choose_device, choose_dtype, dtype_of_config, slow_dtype_note
from headrace.models.defaults import read_generation_defaults
from headrace.models.layer_table import LayerTable, layer_table
from headrace.models.locate import locate_model
from headrace.models.skeleton import automatic_dtype, build_skeleton, read_model_config
from headrace.models.takeover import EngineModel
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer, load_tokenizer
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import WeightMap, build_random_weight_map, build_weight_map
from headrace.models.weights import WeightLoader, move_buffers
from headrace.sampling.parameters import GenerationDefaults
from headrace.schedule.steps import PointKind
from headrace.scheduler.limits import SweepLimits
from headrace.scheduler.scheduler import Scheduler
from headrace.storage.budget import Budget
from headrace.storage.device_memory import default_limit_bytes
from headrace.storage.governor import Governor
from headrace.storage.process_memory import (
    keep_freed_memory,
    release_freed_memory,
    resident_bytes,
)
from headrace.units import format_bytes

BLOCK_TOKENS = 32
_WAITS: frozenset[PointKind] = frozenset({"embedding", "layer", "head"})
"""Everything is in memory, so that no micro-batch waits for KV or experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """An engine that is ready, and what was resolved on the way."""

    engine: Engine
    tokenizer: Tokenizer | WithoutTokenizer
    model_name: str
    description: str
    host: Budget
    device: Budget


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
    smallest = smallest_bytes(table=table, dtype_bytes=dtype.itemsize, block_tokens=BLOCK_TOKENS, options=options)
    _charge_model(host, device_budget, weights.num_bytes, smallest)
    _load_weights(model, weights, device)
    engine_model = EngineModel(model, table)
    attention = GroupedAttention()
    probe = ActivationProbe(
        model=engine_model, attention=attention, device=device, dtype=dtype, block_tokens=BLOCK_TOKENS
    )
    with torch.inference_mode():
        # The first run brings in code and caches, which stay; only the second shows what a sweep takes for itself.
        probe.peak_bytes(SMALLEST_SWEEP_TOKENS, SMALLEST_SWEEP_TOKENS, SMALLEST_SWEEP_TOKENS)
        _settle(host)
        plan = plan_memory(
            table=table,
            budget=device_budget,
            dtype_bytes=dtype.itemsize,
            block_tokens=BLOCK_TOKENS,
            options=options,
            probe=probe.peak_bytes,
            settle=lambda: _settle(host),
        )
        pools = build_pools(table, plan.num_blocks, BLOCK_TOKENS, dtype, device)
    contexts = ContextBuilder(
        groups=table.groups,
        block_tokens=BLOCK_TOKENS,
        pools=pools,
        attention=attention,
        device=device,
        waits=_WAITS,
    )
    engine = _assemble(options, engine_model, contexts, plan, host, tokenizer, path)
    return Launched(
        engine=engine,
        tokenizer=tokenizer,
        model_name=options.model,
        description=_describe(options, table, weights, device, dtype, plan, device_budget)
        + slow_dtype_note(dtype, device)
        + _ignored_note(engine.defaults),
        host=host,
        device=device_budget,
    )


def _assemble(
    options: EngineOptions,
    model: EngineModel,
    contexts: ContextBuilder,
    plan: MemoryPlan,
    host: Budget,
    tokenizer: Tokenizer | WithoutTokenizer,
    path: Path,
) -> Engine:
    cache = KVCacheManager(
        model.table.groups,
        num_blocks=plan.num_blocks,
        block_tokens=BLOCK_TOKENS,
        enable_prefix_caching=options.enable_prefix_caching,
    )
    limits = SweepLimits(
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=plan.max_num_batched_tokens,
        max_micro_batch_tokens=plan.max_num_batched_tokens,
        num_micro_batches=options.num_micro_batches,
    )
    points = [point for point in model.table.points() if point.kind in _WAITS]
    return Engine(
        scheduler=Scheduler(cache, limits),
        executor=Executor(model=model, points=points, contexts=contexts),
        governor=Governor(budget=host),
        tokenizer=tokenizer,
        defaults=read_generation_defaults(path, tokenizer),
        max_model_len=plan.max_model_len,
        vocab_size=model.table.vocab_size,
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


def _charge_model(host: Budget, device: Budget, weight_bytes: int, smallest: int) -> None:
    """Charges what is there already, and all weights.

    Args:
        smallest: what else there must be room for, so that nothing is loaded in vain.
    """
    used = resident_bytes()
    weights = f"{format_bytes(weight_bytes)} of weights and the smallest KV cache and sweep"
    try:
        if device is host:
            host.require(f"Python with torch, {weights}", used + weight_bytes + smallest)
        else:
            host.require("Python with torch", used + LIBRARY_BYTES)
            device.require(weights, weight_bytes + smallest)
    except BudgetError as error:
        raise BudgetError(
            f"the model does not fit: {error}. (Nothing was loaded. This version keeps all weights in memory.)"
        ) from None
    host.charge("Python, torch and tokenizer", used)
    device.charge("weights", weight_bytes)


def _settle(host: Budget) -> None:
    """Charges what torch and its libraries have brought in since the start and keep."""
    release_freed_memory()
    host.settle("libraries", resident_bytes())


def _load_weights(model: PreTrainedModel, weights: WeightMap, device: torch.device) -> None:
    """Loads all weights straight to the device."""

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    with WeightLoader(model, weights, allocate=allocate) as loader:
        loader.load_all()
    if device.type != "cpu":
        move_buffers(model, device)


def _describe(
    options: EngineOptions,
    table: LayerTable,
    weights: WeightMap,
    device: torch.device,
    dtype: torch.dtype,
    plan: MemoryPlan,
    budget: Budget,
) -> str:
    return (
        f"{options.model}: {table.model_type}, {str(dtype).removeprefix('torch.')} on {device}; "
        f"weights {format_bytes(weights.num_bytes)}, KV cache {format_bytes(plan.kv_bytes)}, "
        f"{budget.option} {format_bytes(budget.limit_bytes)}; context {plan.max_model_len:,} tokens, "
        f"{plan.max_num_seqs} rows and {plan.max_num_batched_tokens:,} tokens at a time"
    )


def _ignored_note(defaults: GenerationDefaults) -> str:
    """Names what the model's own file asks for and this version does not do: tokens differ from transformers' there."""
    names = ", ".join(defaults.ignored)
    return f"; generation_config.json sets {names}, which is not followed" if names else ""
