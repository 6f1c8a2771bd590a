"""What a row gets does not depend, by a single bit, on what runs beside it or on where anything lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace import LLM, RequestOutput, SamplingParams
from headrace.models.products import library_for
from tests.few_blocks import leave_few_blocks
from tests.parity.harness import make_prompt
from tests.tiny_configs import VOCAB_SIZE
from tests.tiny_models import save_tiny, write_tokenizer

SYSTEM = make_prompt(70)
PROMPTS = [
    SYSTEM + make_prompt(3),
    make_prompt(41),
    SYSTEM + make_prompt(14),
    make_prompt(1),
    SYSTEM[:40] + make_prompt(7),
    make_prompt(5),
]
PARAMS = [
    SamplingParams(max_tokens=40, ignore_eos=True, logprobs=2, temperature=number % 2, seed=number)
    for number in range(len(PROMPTS))
]
PRECISIONS: dict[str, dict[str, object]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int8-outliers": {"dtype": "bfloat16", "quantization": "int8-outliers"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "KV in int8": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
}
ALWAYS = {
    ("babyllama361-hf", "float32"),
    ("babyllama361-hf", "bfloat16"),
    ("babyllama361-hf", "int8"),
    ("stories260k-mixtral8-hf", "bfloat16"),
}
"""The rest is slow."""
WAYS: dict[str, dict[str, object]] = {
    "all at a time": {},
    "few tokens a sweep": {"max_num_batched_tokens": 16},
    "in micro-batches": {"num_micro_batches": 3},
    "prefixes not shared": {"enable_prefix_caching": False},
    "streamed": {"weights_on_device": 0.0},
    "half of it streamed, few tokens a sweep": {"weights_on_device": 0.5, "max_num_batched_tokens": 24},
}
FAMILIES = (
    "bloom", "deepseek_v2", "falcon", "gemma2", "gemma3_text", "gpt2", "gpt_oss", "llama", "llama3_rope", "llama_tied",
    "mistral", "mixtral", "opt", "qwen2", "qwen3",
)  # fmt: skip
_FEW_BLOCKS = 6


def bits(outputs: list[RequestOutput]) -> list[object]:
    """Returns each row's tokens and their log probabilities, with those of the likeliest ones beside them."""
    return [output.outputs[0].logprobs for output in outputs]


def assert_same(model: Path, options: dict[str, object]) -> None:
    if library_for(getattr(torch, str(options["dtype"])), torch.device("cpu")) is None:
        pytest.skip("torch multiplies here, whose sums depend on how many tokens there are")
    prompts = [list(prompt) for prompt in PROMPTS]
    with LLM(model, max_num_seqs=1, **options) as llm:
        alone = bits([llm.generate([prompt], params)[0] for prompt, params in zip(prompts, PARAMS, strict=True)])
    for way, shape in WAYS.items():
        with LLM(model, **options, **shape) as llm:
            assert bits(llm.generate(prompts, PARAMS)) == alone, way
    with LLM(model, **options) as llm:
        leave_few_blocks(llm, _FEW_BLOCKS)
        outputs = llm.generate(prompts, PARAMS)
    assert sum(output.metrics.num_preemptions for output in outputs if output.metrics is not None) > 0
    assert bits(outputs) == alone, "short of memory"


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=[] if (name, precision) in ALWAYS else [pytest.mark.slow])
        for name in ("babyllama361-hf", "stories260k-mixtral8-hf")
        for precision in PRECISIONS
    ],
)
def test_a_row_is_the_same_alone_and_in_any_company(
    name: str, precision: str, shared_data: Path, tmp_path: Path
) -> None:
    assert_same(shared_data / "models" / name, {**PRECISIONS[precision], "memory": "4GiB", "disk": tmp_path})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_so_it_is_in_families(name: str, precision: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path / "model")
    write_tokenizer(tmp_path / "model", VOCAB_SIZE)
    assert_same(tmp_path / "model", {**PRECISIONS[precision], "memory": "4GiB", "disk": tmp_path / "copies"})
