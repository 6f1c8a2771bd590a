"""`wrap`: an `LLM` over a model that was loaded, trained or changed by transformers."""

from __future__ import annotations

import os
import shutil
import weakref
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import torch

from headrace.engine.launch import BLOCK_TOKENS, Launched, start
from headrace.engine.llm import LLM
from headrace.engine.memory import LIBRARY_BYTES, smallest_bytes
from headrace.engine.memory_options import Size, memory_options
from headrace.engine.options import EngineOptions
from headrace.engine.placed_model import PlacedModel, place_resident
from headrace.engine.streaming import least_stream_bytes, open_stream
from headrace.engine.tiers import Tiers, open_tiers
from headrace.errors import BudgetError, OptionError
from headrace.models.architectures import check_architecture
from headrace.models.defaults import loaded_generation_defaults
from headrace.models.layer_table import LayerTable
from headrace.models.loaded_model import AsItWas, check_loaded_class, check_loaded_weights
from headrace.models.loaded_weights import WrittenWeights, fits_in_memory, map_loaded_weights
from headrace.models.observation import layer_table
from headrace.models.tokenizer import Tokenizer, WithoutTokenizer, with_template
from headrace.models.transformers_api import PreTrainedModel, PreTrainedTokenizerBase
from headrace.models.weight_map import WeightMap
from headrace.storage.budget import Budget
from headrace.storage.process_memory import keep_freed_memory, release_freed_memory, resident_bytes
from headrace.units import format_bytes


def wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    memory: Size | None = None,
    disk: str | Path | None = None,
    *,
    gpu_memory: Size | None = None,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    num_micro_batches: int = 1,
    seed: int = 0,
    enable_prefix_caching: bool = True,
    typical_row_tokens: int | None = None,
    expected_rows: int | None = None,
    weights_on_device: float | None = None,
    kv_on_device: float | None = None,
    kv_cache_dtype: str = "auto",
    chat_template: str | Path | None = None,
    trace: str | Path | None = None,
) -> LLM:
    """Takes a loaded transformers model over and returns an `LLM` that runs it where it is, in its own dtype.

        model = AutoModelForCausalLM.from_pretrained(folder)    # and whatever was done to it since
        with headrace.wrap(model, tokenizer, memory="8GiB") as llm:
            outputs = llm.generate(["Once upon a time"])

    Weights that fit stay what they are: none is copied, and closing the `LLM` gives the model back as it was. Where
    they do not fit (on the CPU), they are written to `disk`, the model's own are let go, and every sweep reads them
    from there; closing deletes what was written, and the model stays without weights. Nobody else may use the model
    until then. A process that is killed leaves its `wrapped-...` folder on the disk.

    Args:
        model: a causal language model of an architecture that Headrace runs, on one device.
        tokenizer: without one, prompts are token ids and answers have no text.
        memory: bytes, or a size such as `8GiB`, that the whole process may use; 80 % of what is free, and what it has
            already, by default.
        disk: a folder, or `folder:size`, for weights that do not fit; by default `$HEADRACE_CACHE` or
            `~/.cache/headrace`.

    The other options are those of `LLM`. What `generation_config` says is followed as it is there.

    Raises:
        UsageError: the model, an option, the memory or the disk is not right; the model is as it was.
    """
    checked = check_loaded_class(model)
    check_architecture(checked.config)  # refuses what cannot be run, before any weight is looked at
    device, dtype = check_loaded_weights(checked)
    given = memory_options(memory=memory, gpu_memory=gpu_memory, disk=disk)
    options = EngineOptions(
        model=checked.config._name_or_path or type(checked).__name__,
        device=str(device),
        memory_bytes=given["memory"],
        gpu_memory_bytes=given["gpu_memory"],
        disk=given["disk"],
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        num_micro_batches=num_micro_batches,
        seed=seed,
        enable_prefix_caching=enable_prefix_caching,
        typical_row_tokens=typical_row_tokens,
        expected_rows=expected_rows,
        weights_on_device=weights_on_device,
        kv_on_device=kv_on_device,
        kv_cache_dtype=kv_cache_dtype,
        chat_template=chat_template,
        trace=trace,
    )
    own = WithoutTokenizer() if tokenizer is None else with_template(tokenizer, chat_template)
    return LLM.holding(_launch(checked, own, options, dtype))


def _launch(
    model: PreTrainedModel,
    tokenizer: Tokenizer | WithoutTokenizer,
    options: EngineOptions,
    dtype: torch.dtype,
) -> Launched:
    """Does for a loaded model what `launch` does for one in a folder."""
    table, defaults = layer_table(model.config), loaded_generation_defaults(model, tokenizer)
    keep_freed_memory()
    release_freed_memory()
    smallest = smallest_bytes(table=table, dtype_bytes=dtype.itemsize, block_tokens=BLOCK_TOKENS, options=options)
    with ExitStack() as undo:
        tiers = open_tiers(options, undo)
        undo.callback(AsItWas(model).restore)
        file = tiers.disk.folder / f"wrapped-{os.getpid()}-{uuid4().hex[:8]}" / "model.safetensors"
        weights, limit = map_loaded_weights(model, file), tiers.host_budget.spendable_bytes
        if not tiers.are_one and options.asks_to_stream:
            raise OptionError(
                f"weights_on_device is {options.weights_on_device}, but the weights of a wrapped model on a GPU stay "
                "there; leave it out, or load the model on the CPU"
            )
        if not tiers.are_one:
            placed = _place_on_device(model, table, weights, tiers, smallest)
        elif not options.asks_to_stream and fits_in_memory(model, lambda: resident_bytes() + smallest <= limit):
            _charge_used(tiers.host_budget, weights.num_bytes)
            placed = place_resident(model, table)
        else:
            placed = _place_on_disk(model, table, weights, tiers, smallest, file, undo)
        undo.callback(placed.close)
        launched = start(options, defaults, placed, weights, dtype, tokenizer, tiers)
        undo.callback(launched.engine.guidance.close)
        close = undo.pop_all().close
    return replace(launched, close=close)


def _place_on_device(
    model: PreTrainedModel, table: LayerTable, weights: WeightMap, tiers: Tiers, smallest: int
) -> PlacedModel:
    tiers.host_budget.require("Python with torch", resident_bytes() + LIBRARY_BYTES)
    tiers.device_budget.require(
        f"{format_bytes(weights.num_bytes)} of weights and the smallest KV cache and sweep",
        weights.num_bytes + smallest,
    )
    _charge_used(tiers.host_budget, 0)
    tiers.device_budget.charge("weights", weights.num_bytes)
    return place_resident(model, table)


def _place_on_disk(
    model: PreTrainedModel,
    table: LayerTable,
    weights: WeightMap,
    tiers: Tiers,
    smallest: int,
    file: Path,
    undo: ExitStack,
) -> PlacedModel:
    """Writes the weights, lets the model's own go, and prepares to stream them; `undo` does the opposite."""
    host = tiers.host_budget
    least = least_stream_bytes(model, weights) + smallest
    what = f"the least part of {format_bytes(weights.num_bytes)} of weights, and the smallest KV cache and sweep"
    others = max(0, resident_bytes() - weights.num_bytes)
    host.require(f"Python with torch, {what}", others + least)
    tiers.disk.require("a copy of the model's weights", weights.num_bytes)
    # Also when the model is forgotten or Python ends before it is closed.
    undo.callback(weakref.finalize(model, shutil.rmtree, file.parent, ignore_errors=True))
    written = WrittenWeights(model, weights, file)

    def take_back(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            written.take_back()

    undo.push(take_back)
    written.let_go()
    release_freed_memory()
    _charge_used(host, 0)
    try:
        host.require(what, least)
    except BudgetError as error:
        raise BudgetError(
            f"{error}. (The memory of the model's weights did not come free: is there an optimizer, or a state_dict, "
            "that still refers to them?)"
        ) from None
    return open_stream(model, table, weights, tiers)


def _charge_used(host: Budget, weight_bytes: int) -> None:
    """Charges what the process has already, of which `weight_bytes` are weights."""
    used = resident_bytes()
    host.charge("weights", min(used, weight_bytes))
    host.charge("Python, torch and tokenizer", max(0, used - weight_bytes))
