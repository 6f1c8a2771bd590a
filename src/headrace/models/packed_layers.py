"""Puts packed layers in the places of a skeleton's linear ones, and their packed weights in its weight map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from headrace.compression.packed_linear import PackedLinear
from headrace.compression.weight_codecs import WeightCodec
from headrace.models.layers import find_layers
from headrace.models.transformers_api import Conv1D, PreTrainedModel
from headrace.models.weight_map import Packed, ParameterSource, Stored, WeightMap
from headrace.units import MIB

_ROWS_BYTES = 64 * MIB
_READ_OTHERWISE = ("kv_b_proj",)
"""Layers that are never called: latent attention takes their weight apart."""


def pack_layers(model: PreTrainedModel, weights: WeightMap, wanted: WeightCodec | None) -> WeightMap:
    """Replaces linear layers within decoder layers: those that the checkpoint has in fewer bits, or that `wanted` fits.

    Embedding and head stay as they are.

    Returns:
        `weights` with the packed form in place of each weight that was replaced.
    """
    parameters = dict(weights.parameters)
    for name, module in list(_linears(model)):
        source = parameters.get(f"{name}.weight")
        if source is None or source.name in weights.tied.values():
            continue
        transposed = isinstance(module, Conv1D)
        num_outputs, num_inputs = reversed(source.shape) if transposed else source.shape
        codec = source.content.codec if isinstance(source.content, Stored) else wanted
        if codec is None or not codec.fits(num_outputs, num_inputs):
            continue
        model.set_submodule(name, PackedLinear(num_inputs, num_outputs, codec, module.bias))
        parameters[source.name] = _packed(source, codec, transposed)
    return replace(weights, parameters=parameters)


def packed_codec(weights: WeightMap) -> WeightCodec | None:
    """Returns the codec that most packed bytes are in; None where nothing is packed."""
    num_bytes: Counter[WeightCodec] = Counter()
    for source in weights.parameters.values():
        if isinstance(source.content, Packed):
            num_bytes[source.content.codec] += source.num_bytes
    return num_bytes.most_common(1)[0][0] if num_bytes else None


def packing_bytes(weights: WeightMap) -> int:
    """Returns what packing takes for a moment, beside what it makes: one weight as it was, and a few rows in fp32."""
    originals = [
        source.content.original for source in weights.parameters.values() if isinstance(source.content, Packed)
    ]
    return max((original.num_bytes + _ROWS_BYTES for original in originals), default=0)


def _linears(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    prefix = find_layers(model).prefix + "."
    for name, module in model.named_modules():
        if name.startswith(prefix) and type(module) in (nn.Linear, Conv1D) and not name.endswith(_READ_OTHERWISE):
            yield name, module


def _packed(source: ParameterSource, codec: WeightCodec, transposed: bool) -> ParameterSource:
    num_outputs, num_inputs = reversed(source.shape) if transposed else source.shape
    return replace(
        source,
        shape=codec.packed_shape(num_outputs, num_inputs),
        dtype="uint8",
        content=Packed(original=source, codec=codec, transposed=transposed),
    )
