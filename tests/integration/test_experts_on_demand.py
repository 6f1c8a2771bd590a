"""A whole engine over a mixture of experts that does not stay in memory: few rows read few experts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from tests.parity.harness import LENGTHS, generated, make_prompt
from tests.tiny_configs import MANY_EXPERTS
from tests.tiny_models import save_tiny, write_tokenizer

GREEDY = SamplingParams(max_tokens=8, temperature=0)
OPTIONS = {
    "all in one micro-batch": {},
    "several micro-batches": {"num_micro_batches": 3},
    "serial": {"overlap": False},
    "a part stays": {"weights_on_device": 0.5},
    "KV on disk": {"kv_on_device": 0},
    "over a link": {"device": "simulated:1GiB,20GB/s"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MANY_EXPERTS)
def test_one_row_and_many_get_the_tokens_of_generate(name: str, options: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    before = threading.active_count()
    given = {"weights_on_device": 0, **OPTIONS[options]}
    with LLM(tmp_path / "model", disk=tmp_path, dtype="float32", **given) as llm:
        assert "of experts those that its tokens need" in llm.description
        for prompts in ([make_prompt(7)], [make_prompt(length) for length in LENGTHS], [make_prompt(3)]):
            outputs = llm.generate(prompts, GREEDY)
            assert [list(output.outputs[0].token_ids) for output in outputs] == [
                generated(name, prompt, 8) for prompt in prompts
            ]
    assert threading.active_count() == before


def test_a_mixture_that_stays_needs_no_experts_to_be_read(tmp_path: Path) -> None:
    save_tiny("mixtral_many", tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    with LLM(tmp_path / "model", disk=tmp_path, dtype="float32", weights_on_device=1.0) as llm:
        assert "experts" not in llm.description
        (output,) = llm.generate([make_prompt(7)], GREEDY)
    assert list(output.outputs[0].token_ids) == generated("mixtral_many", make_prompt(7), 8)


def test_random_weights_run_expert_by_expert(tmp_path: Path) -> None:
    save_tiny("qwen3_next_many", tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    texts = []
    for share in (0.0, 1.0):
        with LLM(tmp_path / "model", disk=tmp_path, load_format="dummy", weights_on_device=share) as llm:
            texts.append([output.outputs[0].token_ids for output in llm.generate([make_prompt(7)] * 2, GREEDY)])
    assert texts[0] == texts[1]
