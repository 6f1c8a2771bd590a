"""What a model's sweeps must at least read and compute, however they are run: what measured times are held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from headrace.compression.kv_codec import KVCodec
from headrace.compression.weight_codecs import WeightCodec
from headrace.models.layer_table import AttentionSpec, ExpertsSpec, LayerTable
from headrace.models.packed_layers import packed_codec
from headrace.models.weight_map import ParameterSource, WeightMap, torch_dtype_name


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertWeights:
    """The routed experts of one layer, all of them together."""

    spec: ExpertsSpec
    num_bytes: int
    num_weights: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelWork:
    """The least work of a model's sweeps.

    Weights of layers and head count. Embeddings, which are read by row, and what lies around the layers do not; nor do
    norms, rotations, the recurrent states' own arithmetic, and sampling.

    Attributes:
        device: that computes, as torch names it.
        dtype: of the arithmetic.
        kv_number_bytes: of a number in the KV cache.
        kv_codec: that keys and values are kept in; None: as such numbers.
        weight_codec: that most weights of layers are packed with, and multiplied with tokens in 8 bits; None: none.
        weight_bytes: of layers without their routed experts, and of the head.
        layer_weights, head_weights: how many weights a token is multiplied with in the layers, and in the head.
        experts: the routed ones, of each layer that has any.
    """

    device: str
    dtype: str
    table: LayerTable
    kv_number_bytes: int
    weight_bytes: int
    layer_weights: int
    head_weights: int
    kv_codec: KVCodec | None = None
    weight_codec: WeightCodec | None = None
    experts: tuple[ExpertWeights, ...] = ()

    def sweep_bytes(self, num_tokens: int) -> float:
        """Returns the bytes of weights that a sweep of `num_tokens` reads; of experts, as many as they likely need."""
        experts = (layer.num_bytes * layer.spec.expected_share(num_tokens) for layer in self.experts)
        return self.weight_bytes + sum(experts)

    def kv_bytes(self, num_tokens: int) -> int:
        """Returns the bytes of KV and states that the last of a row's `num_tokens` tokens reads."""
        return self.table.kv_bytes(num_tokens, self.kv_number_bytes, self.kv_codec)

    def operations(self, num_tokens: int, num_logits: int) -> float:
        """Returns the operations of a row's first `num_tokens` tokens, of which `num_logits` pass the head.

        A multiplication and an addition are two. Attention counts the pairs of a query and a key that it sees.
        """
        experts = sum(layer.num_weights * layer.spec.num_per_token / layer.spec.num_experts for layer in self.experts)
        products = 2 * (num_tokens * (self.layer_weights + experts) + num_logits * self.head_weights)
        specs = [layer.memory for layer in self.table.layers if isinstance(layer.memory, AttentionSpec)]
        attention = sum(
            2 * _num_pairs(num_tokens, spec.window) * self.table.num_heads * (spec.key_width + spec.value_width)
            for spec in specs
        )
        return products + attention


def model_work(
    weights: WeightMap,
    table: LayerTable,
    *,
    dtype: torch.dtype,
    device: torch.device,
    kv_codec: KVCodec | None = None,
) -> ModelWork:
    """Returns the work of a model with these weights."""
    head = list(weights.in_group("head"))
    if any(weights.parameters[source].group == "embedding" for source in weights.tied.values()):
        head += weights.in_group("embedding")
    shared: list[ParameterSource] = []
    experts: list[ExpertWeights] = []
    for index, layer in enumerate(table.layers):
        routed: list[ParameterSource] = []
        for source in weights.in_group(index):
            is_routed = layer.experts is not None and ".experts." in source.name and len(source.shape) == 3
            (routed if is_routed else shared).append(source)
        if layer.experts is not None and routed:
            experts.append(
                ExpertWeights(spec=layer.experts, num_bytes=_num_bytes(routed), num_weights=_num_weights(routed))
            )
    return ModelWork(
        device=str(device),
        dtype=torch_dtype_name(dtype),
        table=table,
        kv_number_bytes=dtype.itemsize,
        weight_bytes=_num_bytes(shared) + _num_bytes(head),
        layer_weights=_num_weights(shared),
        head_weights=_num_weights(head),
        kv_codec=kv_codec,
        weight_codec=packed_codec(weights),
        experts=tuple(experts),
    )


def _num_bytes(sources: Iterable[ParameterSource]) -> int:
    return sum(source.num_bytes for source in sources)


def _num_weights(sources: Iterable[ParameterSource]) -> int:
    """Numbers that take part in products: vectors, such as norms and biases, do not."""
    return sum(source.num_numbers for source in sources if len(source.shape) > 1)


def _num_pairs(num_tokens: int, window: int | None) -> int:
    """Pairs of a token and one that it sees, itself included: all before it, or those in its window."""
    full = num_tokens if window is None else min(num_tokens, window)
    return full * (full + 1) // 2 + (num_tokens - full) * full
