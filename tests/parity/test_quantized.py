"""Packed weights: the tokens of transformers with the same weights unpacked, wherever they lie and however rows run."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headrace import LLM, SamplingParams
from headrace.compression.packed_linear import rounded_tokens
from headrace.compression.weight_codecs import Int8Codec, WeightCodec, weight_codec
from headrace.models.layers import find_layers
from tests.parity.harness import NUM_NEW, make_prompt
from tests.tiny_configs import TINY_CONFIGS, VOCAB_SIZE
from tests.tiny_models import make_tiny_model, save_tiny, write_tokenizer

PROMPTS = tuple(list(make_prompt(length)) for length in (5, 40, 1, 17))
GREEDY = SamplingParams(max_tokens=NUM_NEW, temperature=0, ignore_eos=True)
FAMILIES = sorted(TINY_CONFIGS)
SLACK = {"int8": 0.05, "int8-outliers": 0.05, "int4": 0.02}
"""In standard deviations of all logits."""
PLACES: dict[str, dict[str, object]] = {
    "in memory": {},
    "streamed": {"weights_on_device": 0.0},
    "half of it streamed, few tokens a sweep": {"weights_on_device": 0.5, "max_num_batched_tokens": 16},
    "on a simulated device": {"device": "simulated:2GiB,8GB/s"},
}


def families(*always: str) -> list[object]:
    return [pytest.param(name, marks=[] if name in always else [pytest.mark.slow]) for name in FAMILIES]


def unpacked(model: PreTrainedModel, codec: WeightCodec) -> int:
    """Gives `model` the weights that it has when they were packed; returns how many were."""
    count = 0
    for name, module in find_layers(model).layers.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or name.endswith("kv_b_proj"):
            continue
        transposed = isinstance(module, Conv1D)
        weight = module.weight.data.t() if transposed else module.weight.data
        if not codec.fits(*weight.shape):
            continue
        packed = codec.decode(codec.encode(weight), *weight.shape)
        module.weight.data = packed.t().contiguous() if transposed else packed
        module.register_forward_pre_hook(lambda _, arguments: (rounded_tokens(arguments[0], codec),))
        count += 1
    unpack_head(model, codec if isinstance(codec, Int8Codec) else Int8Codec())
    return count


def unpack_head(model: PreTrainedModel, codec: Int8Codec) -> None:
    """Does the same with the head, which lets go of a matrix that it shared with the embedding."""
    head = model.get_output_embeddings()
    if head.bias is None:
        weight = codec.decode(codec.encode(head.weight.data), *head.weight.shape)
        head.weight = nn.Parameter(weight, requires_grad=False)
        head.register_forward_pre_hook(lambda _, arguments: (rounded_tokens(arguments[0], codec),))


@cache
def reference(name: str, quantization: str) -> PreTrainedModel:
    """Returns transformers' model with the weights unpacked."""
    model, codec = make_tiny_model(name), weight_codec(quantization)
    assert codec is not None
    assert unpacked(model, codec) > 0, "nothing was packed"
    return model


def assert_greedy(model: PreTrainedModel, prompt: list[int], answer: tuple[int, ...], quantization: str) -> None:
    """Every token is the likeliest after those before it, or as good as that.

    A token's number that lies between two codes of 8 bits falls on either side with the last place of fp32, in which
    norms differ; that moves logits a little.
    """
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
    behind = logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert len(answer) == NUM_NEW and behind.max() <= SLACK[quantization] * logits.std()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("quantization", ["int8", "int8-outliers", "int4"])
@pytest.mark.parametrize("name", families("llama", "gpt2", "deepseek_v2"))
def test_tokens_are_those_of_the_unpacked_weights(name: str, quantization: str, place: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path / "model")
    write_tokenizer(tmp_path / "model", VOCAB_SIZE)
    with LLM(
        tmp_path / "model", quantization=quantization, memory="4GiB", disk=tmp_path / "copies", **PLACES[place]
    ) as llm:
        assert f", {quantization}" in llm.description
        outputs = llm.generate(list(PROMPTS), GREEDY)
    model = reference(name, quantization)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert_greedy(model, prompt, output.outputs[0].token_ids, quantization)
