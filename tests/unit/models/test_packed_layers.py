"""What is packed of a model: linear layers and the head, and what becomes of a matrix that two share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.compression.packed_linear import PackedLinear
from headrace.compression.weight_codecs import Int4Codec, Int8Codec, WeightCodec
from headrace.models.packed_layers import pack_head, pack_layers, packed_codec, packing_bytes
from headrace.models.skeleton import build_skeleton
from headrace.models.transformers_api import PreTrainedModel
from headrace.models.weight_map import WeightMap, build_weight_map
from headrace.models.weights import WeightLoader
from tests.tiny_models import save_tiny


def mapped(name: str, folder: Path) -> tuple[PreTrainedModel, WeightMap]:
    save_tiny(name, folder)
    model = build_skeleton(folder, torch.float32)
    return model, build_weight_map(model, Checkpoint.open(folder))


def head(model: PreTrainedModel) -> object:
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_a_packed_head_is_its_matrix_in_eight_bits_and_the_embedding_stays(name: str, tmp_path: Path) -> None:
    model, weights = mapped(name, tmp_path)
    with WeightLoader(model, weights) as loader:
        loader.load_all()
    embedding, matrix = (module.weight.data.clone() for module in (model.get_input_embeddings(), head(model)))
    model, weights = mapped(name, tmp_path)
    weights = pack_head(model, weights, Int4Codec())
    with WeightLoader(model, weights) as loader:
        loader.load_all()
    packed = head(model)
    assert isinstance(packed, PackedLinear) and packed.codec == Int8Codec() and not weights.tied
    assert torch.equal(packed.weight, Int8Codec().encode(matrix))
    assert torch.equal(model.get_input_embeddings().weight, embedding)


@pytest.mark.parametrize("name", ["gptj", "mamba"], ids=["with a bias", "whose dtype the model asks for"])
def test_some_heads_stay(name: str, tmp_path: Path) -> None:
    model, weights = mapped(name, tmp_path)
    before = head(model)
    assert pack_head(model, weights, Int8Codec()) is weights
    assert head(model) is before


@pytest.mark.parametrize("codec", [Int8Codec(outliers=6.0), Int4Codec()], ids=lambda codec: codec.label)
def test_the_codec_of_a_model_is_that_of_its_layers(codec: WeightCodec, tmp_path: Path) -> None:
    model, weights = mapped("llama", tmp_path)
    assert packed_codec(weights) is None and packing_bytes(weights) == 0
    weights = pack_head(model, pack_layers(model, weights, codec), codec)
    assert packed_codec(weights) == codec
    of_layers = [module for module in model.model.layers.modules() if isinstance(module, PackedLinear)]
    assert of_layers and all(module.codec == codec for module in of_layers)


def test_what_lies_in_one_order_is_packed_a_few_rows_at_a_time(tmp_path: Path) -> None:
    sizes = {}
    for name in ("llama", "gpt2"):
        model, weights = mapped(name, tmp_path / name)
        weights = pack_layers(model, weights, Int8Codec())
        sizes[name] = packing_bytes(weights)
    assert sizes["gpt2"] > sizes["llama"], "gpt2's weights are (inputs, outputs), and are turned whole"
