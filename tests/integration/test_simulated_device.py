"""A whole engine over three tiers: a simulated device, its host, and disk."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.errors import BudgetError, OptionError
from tests.parity.harness import LENGTHS, generated, make_prompt
from tests.tiny_models import save_tiny, write_tokenizer

SHARES = {
    "chosen by the engine": {},
    "everything on the device": {"weights_on_device": 1.0, "kv_on_device": 1.0},
    "everything on the host": {
        "weights_on_device": 0,
        "kv_on_device": 0,
        "activations_on_device": 0,
        "weights_on_host": 1.0,
        "kv_on_host": 1.0,
    },
    "KV on the host, which attends": {"kv_on_device": 0, "kv_on_host": 1.0, "attend_on_host": True},
    "KV on the host, and brought": {"kv_on_device": 0, "kv_on_host": 1.0, "attend_on_host": False},
    "everything on disk": {"weights_on_device": 0, "kv_on_device": 0, "weights_on_host": 0, "kv_on_host": 0},
    "a part on each": {
        "weights_on_device": 0.25,
        "kv_on_device": 0.3,
        "activations_on_device": 0.2,
        "weights_on_host": 0.5,
        "kv_on_host": 0.3,
    },
}


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "deepseek_v3", "qwen3_next", "mamba2"])
def test_tokens_are_those_of_generate_wherever_things_are(name: str, shares: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    before = threading.active_count()
    prompts = [make_prompt(length) for length in LENGTHS]
    with LLM(
        tmp_path / "model", device="simulated:1GiB,20GB/s", disk=tmp_path, dtype="float32", **SHARES[shares]
    ) as llm:
        assert "on a simulated device" in llm.description
        outputs = llm.generate(prompts, SamplingParams(max_tokens=8, temperature=0))
    assert [list(output.outputs[0].token_ids) for output in outputs] == [
        generated(name, prompt, 8) for prompt in prompts
    ]
    assert threading.active_count() == before


def test_a_device_that_is_too_small_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    with pytest.raises(BudgetError, match=r"the model does not fit: .* give --device simulated with a SIZE of"):
        LLM(tmp_path / "model", device="simulated:1MiB,20GB/s")


def test_activations_are_sent_nowhere_without_a_device() -> None:
    with pytest.raises(OptionError, match=r"activations_on_device is 0\.5, but the model runs in the memory"):
        LLM("demo", device="cpu", activations_on_device=0.5)


def test_there_is_nothing_not_to_pin_without_a_gpu() -> None:
    with pytest.raises(OptionError, match="nothing to pin"):
        LLM("demo", device="simulated:1GiB,20GB/s", pin_memory=False)


@pytest.mark.parametrize("device", ["simulated:2GiB", "simulated:2GiB,fast", "simulated:much,1GB/s"])
def test_a_device_that_cannot_be_read_is_refused(device: str) -> None:
    with pytest.raises(OptionError, match="expected"):
        LLM("demo", device=device)
