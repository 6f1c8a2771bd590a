"""Whole engines whose keys and values are kept in codes."""

from __future__ import annotations

from pathlib import Path

import pytest

import headrace
from headrace import LLM, SamplingParams
from headrace.errors import OptionError
from tests.parity.harness import LENGTHS, make_prompt
from tests.tiny_models import make_tiny_model, save_tiny, write_tokenizer

PROMPTS = [make_prompt(length) for length in LENGTHS]
SHARES = {
    "everything on the device": {"weights_on_device": 1.0, "kv_on_device": 1.0},
    "KV on the host, which attends": {"kv_on_device": 0, "kv_on_host": 1.0, "attend_on_host": True},
    "KV on the host, and brought": {"kv_on_device": 0, "kv_on_host": 1.0, "attend_on_host": False},
    "everything on disk": {"weights_on_device": 0, "kv_on_device": 0, "weights_on_host": 0, "kv_on_host": 0},
    "a part on each": {"weights_on_device": 0.25, "kv_on_device": 0.3, "weights_on_host": 0.5, "kv_on_host": 0.3},
}


@pytest.fixture(scope="module", params=["llama", "gemma2", "deepseek_v3", "qwen3_next"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, folder)
    write_tokenizer(folder, 97)
    return folder


def answers(llm: LLM) -> list[tuple[int, ...]]:
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=8, temperature=0))
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "int4"])
def test_tokens_are_the_same_on_a_cpu_and_wherever_a_device_has_its_kv(
    model: Path, kv_cache_dtype: str, tmp_path: Path
) -> None:
    options = {"dtype": "float32", "kv_cache_dtype": kv_cache_dtype, "disk": tmp_path, "max_num_batched_tokens": 64}
    with LLM(model, memory="2GiB", **options) as llm:  # type: ignore[arg-type]
        assert f" in {kv_cache_dtype}" in llm.description
        expected = answers(llm)
    with LLM(model, memory="2GiB", weights_on_device=0, kv_on_device=0, **options) as llm:  # type: ignore[arg-type]
        assert answers(llm) == expected
    for shares in SHARES.values():
        with LLM(model, device="simulated:1GiB,20GB/s", **options, **shares) as llm:  # type: ignore[arg-type]
            assert answers(llm) == expected


@pytest.mark.parametrize(("kv_cache_dtype", "head_bytes"), [("auto", 64), ("int8", 16 + 4), ("int4", 8 + 4)])
def test_pages_take_the_bytes_of_their_codes(kv_cache_dtype: str, head_bytes: int, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    write_tokenizer(tmp_path, 97)
    with LLM(tmp_path, memory="2GiB", dtype="float32", kv_cache_dtype=kv_cache_dtype) as llm:
        engine = llm._require_engine()
        num_bytes = sum(tensor.nbytes for tensor in engine.executor.contexts._pools.tensors(0))
        (pool,) = engine.scheduler._cache.pools
        assert num_bytes == pool.num_blocks * 32 * 3 * 2 * 2 * head_bytes  # tokens, layers, keys and values, heads


def test_a_wrapped_model_keeps_codes_as_one_from_a_folder(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    write_tokenizer(tmp_path, 97)
    with LLM(tmp_path, memory="2GiB", kv_cache_dtype="int4") as llm:
        expected = answers(llm)
    with headrace.wrap(make_tiny_model("llama"), memory="2GiB", kv_cache_dtype="int4") as llm:
        assert "in int4" in llm.description
        assert answers(llm) == expected


def test_a_model_without_keys_and_values_is_refused_codes_before_it_is_loaded(tmp_path: Path) -> None:
    save_tiny("mamba2", tmp_path)
    write_tokenizer(tmp_path, 97)
    with pytest.raises(
        OptionError, match="kv_cache_dtype is int8, but a model of type mamba2 keeps no keys and values"
    ):
        LLM(tmp_path, kv_cache_dtype="int8")
