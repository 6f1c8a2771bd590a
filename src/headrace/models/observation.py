"""What each layer keeps and waits for, seen while two tokens pass a model that has shapes but no weights.

Whatever an architecture's configuration calls its heads, windows, states and experts, what reaches attention, mixers
and experts here is what reaches them when the model runs: of the configuration only names and limits are read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from headrace.attention.grouped import GroupedAttention
from headrace.attention.rule import AttentionRule
from headrace.errors import UnsupportedModelError
from headrace.kv_cache.pools import KVPools
from headrace.models.adapters import rotary
from headrace.models.architectures import check_architecture
from headrace.models.coroutine import Coroutine
from headrace.models.layer_table import AttentionSpec, ExpertsSpec, LayerSpec, LayerTable, LengthRule, StateSpec
from headrace.models.layers import find_layers
from headrace.models.micro_batch import LastTokens, MicroBatchContext, StateBatch
from headrace.models.skeleton import outline_of
from headrace.models.takeover import run_forward, take_over
from headrace.models.transformers_api import ForeignModule, PretrainedConfig

_NUM_TOKENS = 2


def layer_table(config: PretrainedConfig) -> LayerTable:
    """Builds the model that `config` describes on the meta device, and watches two tokens pass.

    Raises:
        UnsupportedModelError: the architecture, or a variant that its configuration asks for, is not run exactly.
    """
    check_architecture(config)
    return observe(config)


def observe(config: PretrainedConfig) -> LayerTable:
    """Does the same for architectures that are not verified, too.

    Raises:
        UnsupportedModelError: a layer keeps something that there is no place for.
    """
    model = outline_of(copy.deepcopy(config), torch.float32)
    num_layers = len(find_layers(model).layers)
    take_over(model)
    watch = _Watch.of_tokens()
    with torch.inference_mode(), torch.device("meta"), _no_values_to_check():
        logits = Coroutine(watch, lambda context: run_forward(model, context)).result
    if not watch.memories:
        raise UnsupportedModelError(f"no layer of this {config.model_type} keeps keys or a state")
    return LayerTable(
        model_type=config.model_type,
        vocab_size=logits.shape[-1],
        hidden_size=config.get_text_config().hidden_size,
        num_heads=max(watch.num_heads.values(), default=0),
        max_positions=_max_positions(config.get_text_config()),
        length_rule=_length_rule(model),
        layers=tuple(
            LayerSpec(memory=watch.memories.get(layer), experts=watch.mixtures.get(layer))
            for layer in range(num_layers)
        ),
    )


def _length_rule(model: ForeignModule) -> LengthRule | None:
    rule = next(filter(None, map(rotary.rule_of, model.modules())), None)
    preparing = type(model).prepare_inputs_for_generation.__code__
    starts_again = "original_max_position_embeddings" in preparing.co_names  # Phi-3 drops its cache there
    return None if rule is None else replace(rule, starts_again=starts_again)


def _max_positions(config: PretrainedConfig) -> int | None:
    """The dynamic kind of rotary scaling stretches the positions that a model was trained for."""
    rotary_scaling = getattr(config, "rope_parameters", None) or {}
    stretch = rotary_scaling.get("factor", 1.0) if rotary_scaling.get("rope_type") == "dynamic" else 1.0
    for name in ("max_position_embeddings", "seq_length", "max_seq_len"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value * stretch)
    return None


@contextmanager
def _no_values_to_check() -> Iterator[None]:
    """torch's distributions look at the values of what they are given, which tensors without any do not have."""
    checks = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)


def _nothing(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    raise AssertionError("nothing is kept while layers are observed")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Watch(MicroBatchContext):
    """Tokens that leave a note where they would leave keys, values or a state."""

    memories: dict[int, AttentionSpec | StateSpec] = field(default_factory=dict)
    mixtures: dict[int, ExpertsSpec] = field(default_factory=dict)
    num_heads: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of_tokens(cls) -> _Watch:
        ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device="meta")
        return cls(
            token_ids=ids,
            positions=ids,
            wanted=LastTokens(counts=np.ones(1, dtype=np.int64), tokens=ids[0, :1]),
            layouts=(),
            pools=KVPools(layers=[], num_blocks=[], block_tokens=1, dtype=torch.float32, allocate=_nothing),
            attention=GroupedAttention(),
            waits=frozenset(),
            row_lengths=np.ones(_NUM_TOKENS, dtype=np.int64),
        )

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, rule: AttentionRule) -> Tensor:
        spec = AttentionSpec(
            num_kv_heads=keys.shape[1], key_width=keys.shape[2], value_width=values.shape[2], window=rule.num_seen
        )
        return self._note_attention(layer, query, spec)

    def attend_latents(self, layer: int, query: Tensor, keys: Tensor, rank: int, rule: AttentionRule) -> Tensor:
        spec = AttentionSpec(num_kv_heads=1, key_width=keys.shape[2], value_width=rank, latent=True)
        return self._note_attention(layer, query, spec)

    def mix_experts(self, module: ForeignModule, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        self.mixtures[module.headrace_layer] = ExpertsSpec(
            num_experts=module.num_experts, num_per_token=chosen.shape[-1]
        )
        return torch.empty_like(hidden)

    def by_length(self, rule: LengthRule) -> list[tuple[int, Tensor]]:
        return []

    def state_batches(self, layer: int) -> list[StateBatch]:
        tokens = torch.arange(_NUM_TOKENS, device="meta")[None]
        return [StateBatch(tokens=tokens, sources=None, targets=tokens[0, :1])]

    def store_state(self, layer: int, batch: StateBatch, conv: Tensor, recurrent: Tensor) -> None:
        self._note(layer, StateSpec(conv_shape=tuple(conv.shape[1:]), recurrent_shape=tuple(recurrent.shape[1:])))

    def _note_attention(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        self.num_heads[layer] = query.shape[1]
        self._note(layer, spec)
        return query.new_empty(*query.shape[:2], spec.value_width)

    def _note(self, layer: int, memory: AttentionSpec | StateSpec) -> None:
        if layer in self.memories:
            raise UnsupportedModelError(f"layer {layer} keeps more than one thing, for which there is no place")
        self.memories[layer] = memory
