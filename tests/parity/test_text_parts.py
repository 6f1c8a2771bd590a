"""Checkpoints of models that see, too, as they are published: their text part runs, with transformers' own tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Llama4Config,
    Llama4ForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from headrace import LLM, SamplingParams
from tests.parity.harness import generate_alone, make_prompt
from tests.tiny_configs import VOCAB_SIZE
from tests.tiny_models import write_tokenizer

TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LLAMA_4 = Llama4Config(
    text_config={
        **TEXT,
        "intermediate_size": 32,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "attention_chunk_size": 8,
    },
    vision_config={
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 28,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    },
)
QWEN_3_5 = Qwen3_5Config(
    text_config={
        **TEXT,
        "intermediate_size": 96,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    vision_config={"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64},
)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [(Llama4ForConditionalGeneration, LLAMA_4), (Qwen3_5ForConditionalGeneration, QWEN_3_5)],
    ids=["llama4", "qwen3_5"],
)
def test_the_text_part_of_a_model_that_sees_gives_its_tokens(
    model_class: type[PreTrainedModel], config: PretrainedConfig, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, VOCAB_SIZE)
    prompts = [make_prompt(20), make_prompt(3, seed=1)]
    reference = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with LLM(tmp_path, dtype="float32") as llm:
        outputs = llm.generate(prompts, SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == generate_alone(reference, prompt, 8)
