"""A whole engine on a real GPU: weights and KV on it, on the host and on disk, with the tokens of `generate` there."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import pytest
import torch

import headrace
from headrace import LLM, SamplingParams
from tests.integration.streamed_models import PROMPTS, save_sharded, tokens_of
from tests.integration.test_simulated_device import SHARES
from tests.parity.harness import LENGTHS, generate_alone, make_prompt
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model, save_tiny, write_tokenizer

pytestmark = pytest.mark.gpu

NUM_NEW = 8
FEW = ["llama", "gemma2", "mixtral", "deepseek_v3", "qwen3_next", "mamba2"]


@cache
def generated_on_gpu(name: str) -> list[list[int]]:
    """What transformers' `generate` gives for each prompt alone, on the same device and in float32."""
    model = make_tiny_model(name).to("cuda")
    return [generate_alone(model, make_prompt(length), NUM_NEW) for length in LENGTHS]


def run(folder: Path, **options: object) -> list[list[int]]:
    with LLM(folder / "model", device="cuda", disk=folder, dtype="float32", **options) as llm:  # type: ignore[arg-type]
        assert "on cuda" in llm.description
        prompts = [make_prompt(length) for length in LENGTHS]
        outputs = llm.generate(prompts, SamplingParams(max_tokens=NUM_NEW, temperature=0, ignore_eos=True))
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("num_micro_batches", [1, 6])
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("name", FEW)
def test_tokens_are_those_of_generate_wherever_things_are(
    name: str, shares: str, num_micro_batches: int, tmp_path: Path
) -> None:
    save_tiny(name, tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    before = threading.active_count()
    tokens = run(tmp_path, num_micro_batches=num_micro_batches, gpu_memory="2GiB", **SHARES[shares])
    assert tokens == generated_on_gpu(name)
    assert threading.active_count() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY_CONFIGS if name not in FEW])
def test_every_family_streams_everything(name: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    tokens = run(tmp_path, num_micro_batches=2, gpu_memory="2GiB", **SHARES["a part on each"])
    assert tokens == generated_on_gpu(name)


@pytest.mark.parametrize("options", [{"pin_memory": False}, {"overlap": False, "num_micro_batches": 2}])
def test_other_ways_to_stream_give_the_same_tokens(options: dict[str, object], tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    assert run(tmp_path, gpu_memory="2GiB", **SHARES["a part on each"], **options) == generated_on_gpu("llama")


def test_a_model_larger_than_the_gpu_memory_it_is_given_stays_within_it(tmp_path: Path) -> None:
    save_sharded(tmp_path / "model", hidden_size=1024, num_layers=16, shard="100MB")  # 576 MiB in float32
    limit = 400 << 20
    shape = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64}
    with LLM(tmp_path / "model", device="cuda", disk=tmp_path, gpu_memory="8GiB", **shape) as llm:  # type: ignore[arg-type]
        resident = tokens_of(llm)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with LLM(tmp_path / "model", device="cuda", disk=tmp_path, gpu_memory=limit, **shape) as llm:  # type: ignore[arg-type]
        assert "read in every sweep" in llm.description
        assert tokens_of(llm) == resident
    assert torch.cuda.max_memory_reserved() <= 1.05 * limit


def test_a_wrapped_model_on_the_gpu_may_have_its_kv_below(tmp_path: Path) -> None:
    model = make_tiny_model("llama").to("cuda")
    expected = [generate_alone(model, prompt, NUM_NEW) for prompt in PROMPTS]
    with headrace.wrap(model, gpu_memory="2GiB", disk=tmp_path, kv_on_device=0.0) as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=NUM_NEW, temperature=0, ignore_eos=True))
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
