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
        if isinstance(codec, Int8Codec):
            module.register_forward_pre_hook(lambda _, arguments: (rounded_tokens(arguments[0], codec.outliers),))
        count += 1
    return count


@cache
def expected(name: str, quantization: str) -> tuple[tuple[int, ...], ...]:
    """What transformers generates."""
    model, codec = make_tiny_model(name), weight_codec(quantization)
    assert codec is not None
    assert unpacked(model, codec) > 0, "nothing was packed"
    answers = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False)
            answers.append(tuple(found[0, len(prompt) :].tolist()))
    return tuple(answers)


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
    assert tuple(output.outputs[0].token_ids for output in outputs) == expected(name, quantization)
