"""What each layer keeps between sweeps, read from a configuration: the torch-free description of a model.

Scheduler, pools, plans and `inspect` all read this table, so that it is written once per architecture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from headrace.errors import UnsupportedModelError
from headrace.kv_cache.groups import KVGroup
from headrace.schedule.steps import Point

STATE_BYTES = 4
"""Recurrent states are kept in fp32, as the architectures compute them; convolution states in the model's dtype."""


class ModelConfig(Protocol):
    """The part of a transformers configuration that every supported architecture has."""

    @property
    def model_type(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec:
    """Keys and values that a token leaves in one layer.

    Attributes:
        num_kv_heads: K. key_width: D.
        value_width: V; for `latent` the first V numbers of the key are the value, and nothing else is stored.
        latent: multi-head latent attention (MLA), kept compressed and attended in the absorbed form.
        window: positions that a token reads, itself included; None: all.
    """

    num_kv_heads: int
    key_width: int
    value_width: int
    latent: bool = False
    window: int | None = None

    @property
    def numbers_per_token(self) -> int:
        """Numbers that one token stores in one layer."""
        return self.num_kv_heads * (self.key_width + (0 if self.latent else self.value_width))


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpec:
    """The state that one sequence keeps in one layer, however long it is.

    Attributes:
        conv_shape: (channels, kernel size), in the model's dtype.
        recurrent_shape: in fp32.
    """

    conv_shape: tuple[int, ...]
    recurrent_shape: tuple[int, ...]

    def num_bytes(self, dtype_bytes: int) -> int:
        """Bytes of one sequence's state in one layer."""
        return math.prod(self.conv_shape) * dtype_bytes + math.prod(self.recurrent_shape) * STATE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsSpec:
    """A layer's mixture of experts, of which every token goes to `num_per_token`; shared ones are not counted."""

    num_experts: int
    num_per_token: int

    def expected_share(self, num_tokens: int) -> float:
        """Returns which share of the experts `num_tokens` tokens go to, were all experts equally likely."""
        return 1 - (1 - self.num_per_token / self.num_experts) ** num_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """One layer of the table."""

    memory: AttentionSpec | StateSpec
    experts: ExpertsSpec | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTable:
    """The model as everything above `models` knows it.

    Attributes:
        num_heads: of queries; 0 in a model without attention.
        max_positions: None where the model has no limit.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    max_positions: int | None
    layers: tuple[LayerSpec, ...]

    @property
    def groups(self) -> tuple[KVGroup, ...]:
        """Layers with equal memory, in order of first appearance."""
        members: dict[AttentionSpec | StateSpec, list[int]] = {}
        for index, layer in enumerate(self.layers):
            members.setdefault(layer.memory, []).append(index)
        return tuple(
            KVGroup(
                group_id=group_id,
                layers=tuple(indices),
                kind="state" if isinstance(memory, StateSpec) else "full" if memory.window is None else "sliding",
                window=None if isinstance(memory, StateSpec) else memory.window,
            )
            for group_id, (memory, indices) in enumerate(members.items())
        )

    def memory_of(self, group: KVGroup) -> AttentionSpec | StateSpec:
        """What each layer of `group` keeps."""
        return self.layers[group.layers[0]].memory

    def block_bytes(self, group: KVGroup, block_tokens: int, dtype_bytes: int) -> int:
        """Bytes of one block of `group`, over all of its layers; for a state group, of one sequence's slot."""
        memory = self.memory_of(group)
        if isinstance(memory, StateSpec):
            return len(group.layers) * memory.num_bytes(dtype_bytes)
        return len(group.layers) * block_tokens * memory.numbers_per_token * dtype_bytes

    def group_of(self) -> dict[int, int]:
        """The group of each layer."""
        return {layer: group.group_id for group in self.groups for layer in group.layers}

    def kv_bytes(self, num_tokens: int, dtype_bytes: int) -> int:
        """Bytes that one sequence of `num_tokens` keeps: windows end to grow, states never do."""
        total = 0
        for layer in self.layers:
            if isinstance(layer.memory, StateSpec):
                total += layer.memory.num_bytes(dtype_bytes)
            else:
                kept = num_tokens if layer.memory.window is None else min(num_tokens, layer.memory.window)
                total += kept * layer.memory.numbers_per_token * dtype_bytes
        return total

    def points(self) -> list[Point]:
        """Where a micro-batch may wait for bytes, in the order in which it comes there."""
        points = [Point("embedding")]
        for index, layer in enumerate(self.layers):
            points.append(Point("layer", index))
            if isinstance(layer.memory, AttentionSpec):
                points.append(Point("attention", index))
            if layer.experts is not None:
                points.append(Point("experts", index))
        return [*points, Point("head")]


def layer_table(config: ModelConfig) -> LayerTable:
    """Reads a configuration.

    Raises:
        UnsupportedModelError: the architecture, or a variant that its configuration asks for, is not run exactly.
    """
    build = _MEMORIES.get(config.model_type)
    if build is None:
        known = ", ".join(sorted(_MEMORIES))
        raise UnsupportedModelError(
            f"architecture {config.model_type!r} is not verified to run exactly, so it is refused; "
            f"this version runs {known}"
        )
    _refuse_batch_dependent_rope(config)
    memories = build(config)
    return LayerTable(
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_heads=_optional_int(config, "num_attention_heads", "n_head") or 0,
        max_positions=_optional_int(config, "max_position_embeddings", "seq_length"),
        layers=tuple(
            LayerSpec(memory=memory, experts=_experts(config, index)) for index, memory in enumerate(memories)
        ),
    )


Memories = Sequence[AttentionSpec | StateSpec]


def _int(config: ModelConfig, *names: str) -> int:
    value = _optional_int(config, *names)
    if value is None:
        raise UnsupportedModelError(f"the configuration of this {config.model_type} has no {' or '.join(names)}")
    return value


def _optional_int(config: ModelConfig, *names: str) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    return None


def _heads(config: ModelConfig) -> Memories:
    """Ordinary attention: multi-head, grouped-query or multi-query; full and sliding layers as configured."""
    num_heads = _int(config, "num_attention_heads", "n_head")
    width = _optional_int(config, "head_dim") or config.hidden_size // num_heads
    num_kv_heads = _optional_int(config, "num_key_value_heads") or num_heads
    return [
        AttentionSpec(num_kv_heads=num_kv_heads, key_width=width, value_width=width, window=window)
        for window in _windows(config)
    ]


def _windows(config: ModelConfig) -> list[int | None]:
    window = _optional_int(config, "sliding_window")
    kinds = cast("Sequence[str] | None", getattr(config, "layer_types", None))
    if window is None:
        return [None] * config.num_hidden_layers
    if kinds is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _latents(config: ModelConfig) -> Memories:
    """Multi-head latent attention: one latent and one rotary key, shared by all heads."""
    rank, rotary = _int(config, "kv_lora_rank"), _int(config, "qk_rope_head_dim")
    spec = AttentionSpec(num_kv_heads=1, key_width=rank + rotary, value_width=rank, latent=True)
    return [spec] * config.num_hidden_layers


def _gated_delta(config: ModelConfig) -> Memories:
    """Qwen3-Next: gated delta-net layers between full attention ones."""
    num_keys, num_values = _int(config, "linear_num_key_heads"), _int(config, "linear_num_value_heads")
    key_width, value_width = _int(config, "linear_key_head_dim"), _int(config, "linear_value_head_dim")
    channels = 2 * num_keys * key_width + num_values * value_width
    state = StateSpec(
        conv_shape=(channels, _int(config, "linear_conv_kernel_dim")),
        recurrent_shape=(num_values, key_width, value_width),
    )
    kinds = cast("Sequence[str]", getattr(config, "layer_types", ()))
    return [state if kind == "linear_attention" else full for kind, full in zip(kinds, _heads(config), strict=True)]


def _mamba2(config: ModelConfig) -> Memories:
    state_size, num_heads = _int(config, "state_size"), _int(config, "num_heads")
    inner = _int(config, "expand") * config.hidden_size
    state = StateSpec(
        conv_shape=(inner + 2 * _int(config, "n_groups") * state_size, _int(config, "conv_kernel")),
        recurrent_shape=(num_heads, _int(config, "head_dim"), state_size),
    )
    return [state] * config.num_hidden_layers


_MEMORIES = {
    "llama": _heads,
    "mistral": _heads,
    "qwen2": _heads,
    "qwen3": _heads,
    "opt": _heads,
    "bloom": _heads,
    "gemma2": _heads,
    "gemma3_text": _heads,
    "mixtral": _heads,
    "deepseek_v2": _latents,
    "deepseek_v3": _latents,
    "qwen3_next": _gated_delta,
    "mamba2": _mamba2,
}


def _experts(config: ModelConfig, index: int) -> ExpertsSpec | None:
    if not _has_experts(config, index):
        return None
    return ExpertsSpec(
        num_experts=_int(config, "num_local_experts", "n_routed_experts", "num_experts"),
        num_per_token=_int(config, "num_experts_per_tok"),
    )


def _has_experts(config: ModelConfig, index: int) -> bool:
    match config.model_type:
        case "mixtral":
            return True
        case "deepseek_v2" | "deepseek_v3":
            return index >= _int(config, "first_k_dense_replace")
        case "qwen3_next":
            dense = cast("Sequence[int]", getattr(config, "mlp_only_layers", ()))
            step = _int(config, "decoder_sparse_step")
            return index not in dense and _int(config, "num_experts") > 0 and (index + 1) % step == 0
    return False


def _refuse_batch_dependent_rope(config: ModelConfig) -> None:
    """Long-RoPE and dynamic NTK choose frequencies by the longest row of a batch: a short row would change."""
    parameters = getattr(config, "rope_parameters", None) or {}
    rope_type = parameters.get("rope_type", "default") if isinstance(parameters, dict) else "default"
    if rope_type in ("longrope", "dynamic"):
        raise UnsupportedModelError(
            f"rotary scaling {rope_type!r} depends on the longest row of a batch, so rows would change each other; "
            "it is refused until rows are grouped by length"
        )
