"""A wrapped model gives the tokens that it gave by itself, with its weights in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import headrace
from headrace import SamplingParams
from tests.parity.harness import distinct_rows, generate_alone
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import make_tiny_model

QUICK = ("llama", "llama_tied", "mixtral", "bloom", "qwen3_next", "mamba2")
FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in TINY_CONFIGS]


@pytest.fixture(params=[False, True], ids=["in memory", "on disk"])
def on_disk(request: pytest.FixtureRequest) -> bool:
    """Whether weights are streamed: a tiny model is lost in what Python takes, so that no budget could decide that."""
    asked: bool = request.param
    return asked


def expected(model: PreTrainedModel) -> list[list[int]]:
    return [generate_alone(model, row.prompt, row.num_new) for row in distinct_rows()]


def generated(llm: headrace.LLM) -> list[list[int]]:
    rows = distinct_rows()
    params = [SamplingParams(max_tokens=row.num_new, temperature=0) for row in rows]
    outputs = llm.generate([row.prompt for row in rows], params)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_model_before(name: str, on_disk: bool, tmp_path: Path) -> None:
    model = make_tiny_model(name)
    answers = expected(model)
    with headrace.wrap(model, memory="4GiB", disk=tmp_path, weights_on_device=0 if on_disk else None) as llm:
        assert generated(llm) == answers
        assert ("read in every sweep" in llm.description) == on_disk
        assert len(list(tmp_path.rglob("*.safetensors"))) == on_disk
    assert list(tmp_path.iterdir()) == []
    if not on_disk:
        assert expected(model) == answers, "closing gives the model back"


def test_what_was_changed_in_memory_is_what_runs(on_disk: bool, tmp_path: Path) -> None:
    make_tiny_model("mixtral").save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").train()
    before = expected(model.eval())
    with torch.no_grad():
        for parameter in model.train().parameters():
            parameter.mul_(1.5)
    changed = expected(model.eval())
    assert changed != before
    with headrace.wrap(
        model.train(), memory="4GiB", disk=tmp_path / "disk", weights_on_device=0 if on_disk else None
    ) as llm:
        assert generated(llm) == changed
    assert model.training or on_disk
