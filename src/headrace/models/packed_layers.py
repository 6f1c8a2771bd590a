"""Puts packed layers in the places of a skeleton's linear ones, and their packed weights in its weight map."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import replace

from torch import nn

from headrace.compression.packed_linear import PackedLinear
from headrace.compression.weight_codecs import Int4Codec, Int8Codec, WeightCodec
from headrace.models.layers import linear_layers
from headrace.models.transformers_api import Conv1D, PreTrainedModel
from headrace.models.weight_map import Packed, ParameterSource, Stored, WeightMap
from headrace.units import MIB

_ROWS_BYTES = 64 * MIB


def pack_layers(model: PreTrainedModel, weights: WeightMap, wanted: WeightCodec | None) -> WeightMap:
    """Replaces linear layers within decoder layers: those that the checkpoint has in fewer bits, or that `wanted` fits.

    Returns:
        `weights` with the packed form in place of each weight that was replaced.
    """
    parameters = dict(weights.parameters)
    for name, module in list(linear_layers(model)):
        source = parameters.get(f"{name}.weight")
        if source is None or source.name in weights.tied.values():
            continue
        transposed = isinstance(module, Conv1D)
        num_outputs, num_inputs = reversed(source.shape) if transposed else source.shape
        codec = _stored_codec(source.content.codec, wanted) if isinstance(source.content, Stored) else wanted
        if codec is None or not codec.fits(num_outputs, num_inputs):
            continue
        model.set_submodule(name, PackedLinear(num_inputs, num_outputs, codec, module.bias))
        parameters[source.name] = _packed(source, codec, transposed)
    return replace(weights, parameters=parameters)


def pack_head(model: PreTrainedModel, weights: WeightMap, wanted: WeightCodec) -> WeightMap:
    """Replaces the head by one in 8 bits: every token that is sampled needs all of it.

    A matrix that it shares with the embedding is there twice then: packed, and as it is, whose rows are looked up.
    Heads with a bias stay, as they are streamed in pieces of equally many rows, and those whose weight the model reads.

    Returns:
        `weights` with the head's packed form.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(head) is not nn.Linear or head.bias is not None or _reads_weight_of_head(model):
        return weights
    module_name = next(name for name, module in model.named_modules() if module is head)
    name = f"{module_name}.weight"
    source = weights.parameters.get(weights.tied.get(name, name))
    codec = wanted if isinstance(wanted, Int8Codec) else Int8Codec()
    if source is None or name in weights.tied.values() or not codec.fits(*source.shape):
        return weights
    model.set_submodule(module_name, PackedLinear(head.in_features, head.out_features, codec, None))
    model.all_tied_weights_keys.pop(name, None)
    packed = replace(_packed(source, codec, transposed=False), name=name, group="head")
    return replace(
        weights,
        parameters={**weights.parameters, name: packed},
        tied={tied: of for tied, of in weights.tied.items() if tied != name},
    )


def packed_codec(weights: WeightMap) -> WeightCodec | None:
    """Returns the codec that most packed bytes of layers are in; None where nothing is packed."""
    num_bytes: Counter[WeightCodec] = Counter()
    for source in weights.parameters.values():
        if isinstance(source.content, Packed) and source.group != "head":
            num_bytes[source.content.codec] += source.num_bytes
    return num_bytes.most_common(1)[0][0] if num_bytes else None


def packing_bytes(weights: WeightMap) -> int:
    """Returns what packing takes for a moment, beside what it makes: a few rows in fp32, and one weight as it was."""
    packed = [source.content for source in weights.parameters.values() if isinstance(source.content, Packed)]
    whole = (0 if content.is_read_by_rows else content.original.num_bytes for content in packed)
    return max((num_bytes + _ROWS_BYTES for num_bytes in whole), default=0)


def _stored_codec(stored: Int8Codec | Int4Codec, wanted: WeightCodec | None) -> WeightCodec:
    """What is in 8 bits already may be multiplied with outliers left out."""
    return wanted if isinstance(stored, Int8Codec) and isinstance(wanted, Int8Codec) else stored


def _reads_weight_of_head(model: PreTrainedModel) -> bool:
    """Some models convert hidden states to the dtype of the head's weight."""
    return "lm_head.weight" in inspect.getsource(type(model).forward)


def _packed(source: ParameterSource, codec: WeightCodec, transposed: bool) -> ParameterSource:
    num_outputs, num_inputs = reversed(source.shape) if transposed else source.shape
    return replace(
        source,
        shape=codec.packed_shape(num_outputs, num_inputs),
        dtype="uint8",
        content=Packed(original=source, codec=codec, transposed=transposed),
    )
