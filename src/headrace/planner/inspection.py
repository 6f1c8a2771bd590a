"""What a model is and would cost, from its configuration and headers; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.checkpoint.checkpoint import Checkpoint, read_config
from headrace.errors import CheckpointNotFoundError, UnsupportedModelError
from headrace.models.choices import dtype_of_config
from headrace.models.layer_table import AttentionSpec, LayerTable, StateSpec, layer_table
from headrace.models.skeleton import build_skeleton, checkpoint_dtype
from headrace.models.tokenizer import Tokenizer, load_tokenizer
from headrace.models.weight_map import ParameterSource, WeightMap, build_random_weight_map, build_weight_map
from headrace.planner.calibration import calibrate
from headrace.planner.hardware import Hardware

PREFILL_TOKENS = 512


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
        unsupported: why the model cannot be run; None where it can. Fields about KV and times are then empty.
        num_active_parameters: those that one token uses: of the experts, only the chosen ones.
        weights: `safetensors`, `torch_bin`, or `none` where only a configuration is there.
        kv_bytes_per_token: growth per token while no window is full.
        state_bytes_per_row: recurrent state, however long the row is.
        prefill_seconds: ideal time for 512 tokens: operations / measured matrix rate.
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
    kv_bytes_per_token: int | None
    state_bytes_per_row: int | None
    hardware: Hardware
    prefill_seconds: float | None
    decode_seconds: float | None


def inspect_model(model: str, path: Path, *, dtype: torch.dtype | None, device: torch.device) -> ModelReport:
    """Reads headers and configuration of the model at `path`, and measures the machine for about a second.

    Raises:
        CheckpointError: the files are damaged, or not those of a model that transformers knows.
    """
    checkpoint = _open(path)
    dtype = dtype or (checkpoint_dtype(checkpoint) if checkpoint else dtype_of_config(read_config(path)))
    skeleton = build_skeleton(path, dtype)
    weights = build_weight_map(skeleton, checkpoint) if checkpoint else build_random_weight_map(skeleton)
    hardware = calibrate(device, dtype)
    unsupported, table = None, None
    try:
        table = layer_table(skeleton.config)
    except UnsupportedModelError as error:
        unsupported = str(error)
    tokenizer = load_tokenizer(path, optional=True)
    active = _active_parameters(weights, skeleton.config.to_dict())
    read_once = weights.group_bytes("embedding") if not weights.tied else 0
    return ModelReport(
        model=model,
        architecture=skeleton.config.model_type,
        unsupported=unsupported,
        num_parameters=sum(_count(source) for source in weights.parameters.values()),
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
        kv_bytes_per_token=_kv_per_token(table, dtype.itemsize) if table else None,
        state_bytes_per_row=_state_per_row(table, dtype.itemsize) if table else None,
        hardware=hardware,
        prefill_seconds=2 * PREFILL_TOKENS * _multiplied(weights, active) / hardware.matrix_rate if table else None,
        decode_seconds=(active * dtype.itemsize - read_once) / hardware.memory_rate if table else None,
    )


def _open(path: Path) -> Checkpoint | None:
    try:
        return Checkpoint.open(path)
    except CheckpointNotFoundError:
        read_config(path)  # without a configuration there is nothing to inspect: its own error says so
        return None


def _count(source: ParameterSource) -> int:
    return torch.Size(source.shape).numel()


def _active_parameters(weights: WeightMap, config: dict[str, object]) -> int:
    """Parameters that one token uses: all, but of merged experts (3-D tensors) only the chosen part."""
    chosen, experts = config.get("num_experts_per_tok"), 0
    total = sum(_count(source) for source in weights.parameters.values())
    if not isinstance(chosen, int):
        return total
    for source in weights.parameters.values():
        if ".experts." in source.name and len(source.shape) == 3:
            experts += _count(source) * (source.shape[0] - chosen) // source.shape[0]
    return total - experts


def _multiplied(weights: WeightMap, active: int) -> int:
    """Active parameters that take part in matrix products: an embedding that is not the head is only read by row."""
    embedding = sum(_count(source) for source in weights.in_group("embedding"))
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


def _kv_per_token(table: LayerTable, dtype_bytes: int) -> int:
    memories = [layer.memory for layer in table.layers]
    return sum(memory.numbers_per_token * dtype_bytes for memory in memories if isinstance(memory, AttentionSpec))


def _state_per_row(table: LayerTable, dtype_bytes: int) -> int:
    memories = [layer.memory for layer in table.layers]
    return sum(memory.num_bytes(dtype_bytes) for memory in memories if isinstance(memory, StateSpec))
