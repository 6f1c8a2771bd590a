"""What a model is and would cost, from its configuration and headers; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.checkpoint.checkpoint import Checkpoint, read_config
from headrace.compression.kv_codec import KVCodec
from headrace.errors import CheckpointNotFoundError, UnsupportedCheckpointError, UnsupportedModelError
from headrace.models.choices import dtype_of_config
from headrace.models.layer_table import AttentionSpec, LayerTable, StateSpec
from headrace.models.observation import layer_table
from headrace.models.packed_layers import pack_layers
from headrace.models.skeleton import automatic_dtype, build_outline
from headrace.models.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import WeightMap, build_random_weight_map, build_weight_map
from headrace.planner.calibration import calibrate
from headrace.planner.hardware import Hardware
from headrace.storage.device_memory import default_limit_bytes

PREFILL_TOKENS = 512
_CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerBytes:
    """Neighbouring layers of one size: the first, how many, and the bytes of each."""

    first: int
    count: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReport:
    """See `inspect_model`. Sizes in bytes, times in seconds.

    Attributes:
        unsupported: why the model cannot be run; None where it can. Times are then empty, and so are fields about KV
            and context where it is the architecture that is unknown.
        num_active_parameters: those that one token uses: of the experts, only the chosen ones.
        weights: `safetensors`, `torch_bin`, or `none` where only a configuration is there.
        kv_cache_dtype: what keys and values are kept in: the dtype, or a codec.
        kv_bytes_per_token: growth per token while no window is full.
        kv_bytes_per_further_token: growth per token when all windows are full.
        state_bytes_per_row: recurrent state, however long the row is.
        prefill_seconds: ideal time for 512 tokens: operations of weights / measured matrix rate. Those of attention
            itself, in most models about 512 / (12 x hidden size) of them, are left out.
        decode_seconds: ideal time of one token of one row: active weights / measured memory rate.
    """

    model: str
    architecture: str
    unsupported: str | None
    num_parameters: int
    num_active_parameters: int
    num_layers: int
    dtype: str
    weights: str
    weight_bytes: int
    embedding_bytes: int
    head_bytes: int
    layers: tuple[LayerBytes, ...]
    context_tokens: int | None
    has_tokenizer: bool
    has_chat_template: bool
    kv_cache_dtype: str
    kv_bytes_per_token: int | None
    kv_bytes_per_further_token: int | None
    state_bytes_per_row: int | None
    hardware: Hardware
    prefill_seconds: float | None
    decode_seconds: float | None


def inspect_model(
    model: str, path: Path, *, dtype: torch.dtype | None, device: torch.device, codec: KVCodec | None = None
) -> ModelReport:
    """Reads headers and configuration of the model at `path`, and measures the machine for about a second.

    Args:
        codec: of keys and values; None: they are kept in the dtype.

    Raises:
        CheckpointError: the files are damaged, or not those of a model that transformers knows.
    """
    unsupported: list[str] = []
    checkpoint = _open(path, unsupported)
    if dtype is None and checkpoint is not None:
        dtype = automatic_dtype(checkpoint, device, default_limit_bytes(device))
    dtype = dtype or dtype_of_config(read_config(path))
    outline = build_outline(path, dtype)
    weights = build_weight_map(outline, checkpoint) if checkpoint else build_random_weight_map(outline)
    weights = pack_layers(outline, weights, None)
    table = _layer_table(outline, unsupported)
    tokenizer = load_tokenizer(path, optional=True)
    check_vocabulary(path, tokenizer, outline.config.get_text_config().vocab_size)
    hardware = calibrate(device, dtype)
    active = _active_parameters(weights, table, outline.config.get_text_config().to_dict())
    multiplied = _multiplied(weights, active)
    return ModelReport(
        model=model,
        architecture=outline.config.model_type,
        unsupported="; ".join(unsupported) or None,
        num_parameters=sum(source.num_numbers for source in weights.parameters.values()),
        num_active_parameters=active,
        num_layers=weights.num_layers,
        dtype=str(dtype).removeprefix("torch."),
        weights=checkpoint.format if checkpoint else "none",
        weight_bytes=weights.num_bytes,
        embedding_bytes=weights.group_bytes("embedding"),
        head_bytes=weights.group_bytes("head"),
        layers=_layer_bytes(weights),
        context_tokens=table.max_positions if table else None,
        has_tokenizer=isinstance(tokenizer, Tokenizer),
        has_chat_template=tokenizer.has_chat_template,
        kv_cache_dtype=codec.name if codec else str(dtype).removeprefix("torch."),
        kv_bytes_per_token=_kv_per_token(table, dtype.itemsize, codec) if table else None,
        kv_bytes_per_further_token=_kv_per_token(table, dtype.itemsize, codec, windows=False) if table else None,
        state_bytes_per_row=_state_per_row(table, dtype.itemsize) if table else None,
        hardware=hardware,
        prefill_seconds=None if unsupported else 2 * PREFILL_TOKENS * multiplied / hardware.matrix_rate,
        decode_seconds=None if unsupported else multiplied * dtype.itemsize / hardware.memory_rate,
    )


def _open(path: Path, unsupported: list[str]) -> Checkpoint | None:
    """Opens the checkpoint, if there is one of a format that is read; else notes in `unsupported` why not."""
    read_config(path)  # without a configuration there is nothing to inspect: its own error says so
    try:
        return Checkpoint.open(path)
    except CheckpointNotFoundError:
        return None
    except UnsupportedCheckpointError as error:
        unsupported.append(str(error))
        return None


def _layer_table(model: PreTrainedModel, unsupported: list[str]) -> LayerTable | None:
    """Reads the model's layers, or notes in `unsupported` why it is not run."""
    try:
        return layer_table(model.config)
    except UnsupportedModelError as error:
        unsupported.append(str(error))
        return None


def _active_parameters(weights: WeightMap, table: LayerTable | None, config: dict[str, object]) -> int:
    """Parameters that one token uses: all, but of merged experts (3-D tensors) only the chosen part."""
    named = next((config[name] for name in _CHOSEN_EXPERTS if config.get(name)), None)
    active = 0
    for source in weights.parameters.values():
        active += source.num_numbers
        if ".experts." not in source.name or len(source.shape) != 3 or not isinstance(source.group, int):
            continue
        experts = table.layers[source.group].experts if table else None
        chosen = experts.num_per_token if experts else named
        if isinstance(chosen, int):
            active -= source.num_numbers * (source.shape[0] - chosen) // source.shape[0]
    return active


def _multiplied(weights: WeightMap, active: int) -> int:
    """Active parameters that take part in matrix products: an embedding that is not the head is only read by row."""
    embedding = sum(source.num_numbers for source in weights.in_group("embedding"))
    return active if weights.tied else active - embedding


def _layer_bytes(weights: WeightMap) -> tuple[LayerBytes, ...]:
    runs: list[LayerBytes] = []
    for index in range(weights.num_layers):
        num_bytes = weights.group_bytes(index)
        if runs and runs[-1].num_bytes == num_bytes:
            runs[-1] = LayerBytes(first=runs[-1].first, count=runs[-1].count + 1, num_bytes=num_bytes)
        else:
            runs.append(LayerBytes(first=index, count=1, num_bytes=num_bytes))
    return tuple(runs)


def _kv_per_token(table: LayerTable, dtype_bytes: int, codec: KVCodec | None, *, windows: bool = True) -> int:
    """Bytes that a token adds in all layers; without `windows`, in those that keep every token."""
    memories = [layer.memory for layer in table.layers if isinstance(layer.memory, AttentionSpec)]
    return sum(memory.token_bytes(dtype_bytes, codec) for memory in memories if windows or memory.window is None)


def _state_per_row(table: LayerTable, dtype_bytes: int) -> int:
    memories = [layer.memory for layer in table.layers]
    return sum(memory.num_bytes(dtype_bytes) for memory in memories if isinstance(memory, StateSpec))
