"""Which weights are interleaved, and that nothing that a model returns changes."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headrace.kernels.library import library, usable
from headrace.models.embedding_rows import InterleavedEmbedding
from headrace.models.interleaved_layers import InterleavedLinear, interleave_layers
from headrace.models.products import LibraryProducts
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(not usable(), reason="no library is built")

TOKENS = torch.tensor([[3, 4, 5, 3, 90, 0, 127]])


def made(name: str) -> PreTrainedModel:
    return make_tiny_model(name, dtype=torch.bfloat16, vocab_size=128, intermediate_size=128)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode(), LibraryProducts(found_library()):
        found: Tensor = model(TOKENS).logits
    return found


def found_library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found


def interleaved(model: PreTrainedModel) -> set[str]:
    return {name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is InterleavedLinear}


LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("llama", {*LLAMA, "lm_head"} - {"k_proj", "v_proj"}),
        ("llama_tied", {*LLAMA, "lm_head"} - {"k_proj", "v_proj"}),
        ("gemma3_text", {*LLAMA, "lm_head"} - {"k_proj", "v_proj"}),
        ("mamba", {"in_proj", "lm_head"}),
        ("deepseek_v3", {"o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}),
    ],
)
def test_a_model_returns_the_same_bits(name: str, layers: set[str]) -> None:
    model = made(name)
    expected = logits(model)
    interleave_layers(model)
    assert interleaved(model) == layers
    assert torch.equal(logits(model), expected)


def test_an_embedding_looks_its_rows_up_in_what_the_head_has_of_them() -> None:
    model = made("llama_tied")
    matrix = model.get_input_embeddings().weight.clone()
    interleave_layers(model)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, InterleavedEmbedding) and embedding.weight.is_meta
    assert torch.equal(embedding(TOKENS), matrix[TOKENS])


def test_weights_that_something_else_has_too_or_reads_stay() -> None:
    model = made("llama")
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    second.q_proj.weight = first.q_proj.weight
    model.model.layers[2].mlp = Reads(model.model.layers[2].mlp.down_proj)
    expected = logits(model)
    interleave_layers(model)
    assert type(first.q_proj) is type(second.q_proj) is nn.Linear
    assert interleaved(model) == {"q_proj", "o_proj", "gate_proj", "up_proj", "lm_head"}
    assert torch.equal(logits(model), expected)


class Reads(nn.Module):
    """Multiplies with a layer's weight by itself."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.ones(128, 64, dtype=torch.bfloat16))
        self.down_proj = layer

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.up.t() @ self.down_proj.weight.t()
