"""What a model's weights are, and in which of the precisions that are allowed they are held. Reads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from headrace.checkpoint.checkpoint import Checkpoint, read_config
from headrace.compression.weight_codecs import weight_codec
from headrace.engine.memory import smallest_bytes
from headrace.engine.options import EngineOptions
from headrace.engine.tiers import Tiers
from headrace.errors import OptionError
from headrace.models.architectures import check_architecture
from headrace.models.choices import choose_dtype, dtype_of_config
from headrace.models.observation import layer_table
from headrace.models.packed_layers import pack_head, pack_layers, packed_codec, packing_bytes
from headrace.models.skeleton import automatic_dtype, build_outline, build_skeleton, make_buffers, read_model_config
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import Stored, WeightMap, build_random_weight_map, build_weight_map
from headrace.planner.calibration import measure_matrix_rate
from headrace.storage.process_memory import release_freed_memory, resident_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedModel:
    """A skeleton, and where its weights come from.

    Attributes:
        dtype: of what is not packed, and of the arithmetic.
    """

    model: PreTrainedModel
    weights: WeightMap
    dtype: torch.dtype


def describe_model(options: EngineOptions, path: Path, tiers: Tiers, block_tokens: int) -> DescribedModel:
    """Returns the model in the precision that `options` name, or in the best of those that they allow.

    Raises:
        UsageError: the model cannot be run, or its weights not be packed so.
    """
    described = _describe(options, path, tiers)
    if not options.allow:
        return described
    stored = packed_codec(described.weights)
    if stored is not None:
        raise OptionError(
            f"allow is {', '.join(options.allow)}, but the weights of {options.model} are quantized already, to "
            f"{stored.label}; leave it out, or use the original checkpoint"
        )
    others = [_describe(replace(options, quantization=name, allow=()), path, tiers) for name in options.allow]
    return _best([described, *others], options, tiers, block_tokens)


def is_too_large(described: DescribedModel, options: EngineOptions, tiers: Tiers, block_tokens: int) -> bool:
    """Whether weights and the least that has to be beside them do not fit into the device's memory."""
    release_freed_memory()
    smallest = smallest_bytes(
        table=layer_table(described.model.config),
        dtype_bytes=described.dtype.itemsize,
        block_tokens=block_tokens,
        options=options,
    )
    beside = max(smallest, packing_bytes(described.weights))
    base = resident_bytes() if tiers.are_one else 0
    return base + described.weights.num_bytes + beside > tiers.device_budget.spendable_bytes


def _best(found: Sequence[DescribedModel], options: EngineOptions, tiers: Tiers, block_tokens: int) -> DescribedModel:
    """Returns, of those that fit into memory, the one whose products are fastest; if none does, the smallest."""
    fitting = [each for each in found if not is_too_large(each, options, tiers, block_tokens)]
    if fitting and not options.asks_to_stream:
        return max(fitting, key=lambda each: measure_matrix_rate(tiers.device, each.dtype, packed_codec(each.weights)))
    return min(found, key=lambda each: each.weights.num_bytes)


def _describe(options: EngineOptions, path: Path, tiers: Tiers) -> DescribedModel:
    if options.load_format == "dummy":
        check_architecture(read_model_config(path))
        dtype = choose_dtype(options.dtype) or dtype_of_config(read_config(path))
        model = build_skeleton(path, dtype)
        weights = build_random_weight_map(model, options.seed)
    else:
        checkpoint = Checkpoint.open(path)
        check_architecture(read_model_config(path))  # refuses what cannot be run before it is built
        dtype = choose_dtype(options.dtype) or automatic_dtype(
            checkpoint, tiers.device, tiers.device_budget.limit_bytes
        )
        model = build_outline(path, dtype)
        weights = build_weight_map(model, checkpoint)
        make_buffers(model, path)  # of sizes that the weights have confirmed
    return DescribedModel(model=model, weights=_packed(model, weights, options), dtype=dtype)


def _packed(model: PreTrainedModel, weights: WeightMap, options: EngineOptions) -> WeightMap:
    """Packs layers and head as they are wanted; of a checkpoint that is packed so already, the head."""
    wanted = weight_codec(options.quantization)
    contents = [source.content for source in weights.parameters.values()]
    stored = next((content.codec for content in contents if isinstance(content, Stored)), None)
    if wanted is not None and stored is not None and type(wanted) is not type(stored):
        raise OptionError(
            f"quantization is {options.quantization}, but the weights of {options.model} are quantized already, to "
            f"{stored.label}; leave it out, or use the original checkpoint"
        )
    weights = pack_layers(model, weights, wanted)
    return weights if wanted is None else pack_head(model, weights, wanted)
