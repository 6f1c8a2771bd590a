"""A context whose KV the device does not hold is given room below it, because it was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.errors import BudgetError
from tests.parity.harness import make_prompt

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 97,
    "max_position_embeddings": 32768,
    "torch_dtype": "float32",
}
"""16 KiB of KV per token: 256 MiB for 16,384 tokens. 20 MiB of weights."""
CONTEXT = 16_384
PROMPT = make_prompt(700)


def answer(folder: Path, device: str, **options: object) -> tuple[str, list[int]]:
    with LLM(
        folder,
        device=device,
        disk=folder,
        load_format="dummy",
        max_model_len=CONTEXT,
        max_num_batched_tokens=128,
        **options,  # type: ignore[arg-type]
    ) as llm:
        (output,) = llm.generate([PROMPT], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))
        return llm.description, list(output.outputs[0].token_ids)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_rows_as_long_as_asked_for_run_with_their_kv_below(folder: Path) -> None:
    whole, expected = answer(folder, "simulated:2GiB,20GB/s")
    below, tokens = answer(folder, "simulated:300MiB,20GB/s")
    assert "on host" not in whole and f"context {CONTEXT:,} tokens" in whole
    assert "on host" in below and f"context {CONTEXT:,} tokens" in below
    assert tokens == expected


def test_shares_that_are_asked_for_go_before(folder: Path) -> None:
    with pytest.raises(BudgetError, match="does not fit"):
        answer(folder, "simulated:300MiB,20GB/s", kv_on_device=1.0)
