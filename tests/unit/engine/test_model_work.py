"""The least work of a model, from its weights and layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace import LLM
from headrace.engine.model_work import ModelWork, model_work
from headrace.models.observation import layer_table
from headrace.models.weight_map import build_random_weight_map
from tests.tiny_models import make_tiny_model, save_tiny, write_tokenizer


def work_of(name: str) -> ModelWork:
    model = make_tiny_model(name)
    table, weights = layer_table(model.config), build_random_weight_map(model)
    return model_work(weights, table, dtype=torch.float32, device=torch.device("cpu"))


def numbers(name: str, *parts: str, without: str = " ") -> int:
    """Weights of matrices whose name has one of `parts`, tied ones under each of their names."""
    return sum(
        tensor.numel()
        for key, tensor in make_tiny_model(name).state_dict().items()
        if any(part in key for part in parts) and without not in key and tensor.dim() > 1
    )


def test_weights_of_layers_and_head_are_read_and_multiplied() -> None:
    work, model = work_of("llama"), make_tiny_model("llama")
    assert (work.layer_weights, work.head_weights) == (numbers("llama", ".layers."), numbers("llama", "lm_head"))
    read = [tensor for key, tensor in model.state_dict().items() if ".layers." in key or "lm_head" in key]
    assert work.sweep_bytes(1) == work.sweep_bytes(99) == sum(tensor.nbytes for tensor in read)


def test_a_head_that_shares_the_embedding_s_weights_counts() -> None:
    assert make_tiny_model("gemma2").config.tie_word_embeddings
    assert work_of("gemma2").head_weights == numbers("gemma2", "lm_head")


def test_of_experts_a_token_uses_some_and_many_tokens_use_all() -> None:
    work = work_of("mixtral")
    experts = numbers("mixtral", ".experts.")
    spec = work.table.layers[0].experts
    assert spec is not None
    assert work.layer_weights == numbers("mixtral", ".layers.", without=".experts.")
    assert sum(layer.num_weights for layer in work.experts) == experts
    share = spec.num_per_token / spec.num_experts
    assert work.sweep_bytes(1) == pytest.approx(work.weight_bytes + 4 * experts * share)
    assert work.sweep_bytes(1000) == pytest.approx(work.weight_bytes + 4 * experts)
    per_token = work.operations(2, 1) - work.operations(1, 1)
    assert per_token == pytest.approx(2 * (work.layer_weights + experts * share) + attention(work, 2))


def attention(work: ModelWork, num_seen: int) -> int:
    """Operations of one token's attention to `num_seen` tokens."""
    specs = [work.table.attention_of(layer) for layer in range(len(work.table.layers))]
    return sum(2 * num_seen * work.table.num_heads * (spec.key_width + spec.value_width) for spec in specs)


def test_a_token_attends_to_those_before_it_and_to_no_more_than_its_window() -> None:
    full, sliding = work_of("llama"), work_of("mistral")
    window = sliding.table.attention_of(0).window
    assert window is not None and full.table.attention_of(0).window is None
    for work, num_tokens, num_seen in ((full, 100, 100), (sliding, window + 50, window)):
        last = work.operations(num_tokens, 0) - work.operations(num_tokens - 1, 0)
        assert last == pytest.approx(2 * work.layer_weights + attention(work, num_seen))


def test_kv_is_that_of_all_tokens_that_are_kept() -> None:
    work = work_of("llama")
    spec = work.table.attention_of(0)
    assert work.kv_bytes(7) == 7 * len(work.table.layers) * spec.token_bytes(4, None)


def test_an_llm_says_its_own(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    write_tokenizer(tmp_path, 97)
    with LLM(tmp_path, dtype="bfloat16") as llm:
        assert (llm.work.device, llm.work.dtype, llm.work.kv_number_bytes) == ("cpu", "bfloat16", 2)
        assert llm.work.layer_weights == work_of("llama").layer_weights
        assert llm.work.weight_bytes == work_of("llama").weight_bytes // 2
