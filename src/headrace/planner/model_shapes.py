"""The shapes that a model's layers multiply and attend with, from its configuration alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.models.layer_table import AttentionSpec
from headrace.models.observation import layer_table
from headrace.models.skeleton import build_outline
from headrace.models.weight_map import build_random_weight_map
from headrace.planner.attention_rates import AttentionShape

_MOST_MATRICES = 3
_LEAST_WIDTH = 16
"""What is narrower in either direction is no matrix product that counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShapes:
    """See `read_model_shapes`.

    Attributes:
        matrices: (rows, columns) of the layers' weights, those with the most numbers in all layers first.
        attention: of the most common kind of attention layer; None in a model without.
    """

    matrices: tuple[tuple[int, int], ...]
    attention: AttentionShape | None


def read_model_shapes(folder: Path) -> ModelShapes:
    """Reads the configuration in `folder`; no weight is read.

    Raises:
        CheckpointError: it is not there, or damaged.
        UnsupportedModelError: the architecture is not run.
    """
    outline = build_outline(folder, torch.float32)
    table = layer_table(outline.config)
    weights = build_random_weight_map(outline)
    numbers: Counter[tuple[int, int]] = Counter()
    for index in range(weights.num_layers):
        for source in weights.in_group(index):
            is_merged = len(source.shape) == 3 and ".experts." in source.name
            if (len(source.shape) == 2 or is_merged) and min(source.shape[-2:]) >= _LEAST_WIDTH:
                rows, columns = source.shape[-2:]
                numbers[rows, columns] += torch.Size(source.shape).numel()
    kinds = Counter(layer.memory for layer in table.layers if isinstance(layer.memory, AttentionSpec))
    return ModelShapes(
        matrices=tuple(shape for shape, _ in numbers.most_common(_MOST_MATRICES)),
        attention=attention_shape(kinds.most_common(1)[0][0], table.num_heads) if kinds else None,
    )


def attention_shape(spec: AttentionSpec, num_heads: int) -> AttentionShape:
    """Returns the heads of a layer for `measure_attention`."""
    return AttentionShape(
        num_heads=num_heads,
        num_kv_heads=spec.num_kv_heads,
        key_width=spec.key_width,
        value_width=spec.value_width,
        latent=spec.latent,
    )
