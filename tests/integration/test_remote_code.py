"""Code that comes with a checkpoint runs where it is trusted, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.errors import UnsupportedModelError
from tests.parity.harness import NUM_NEW, distinct_rows, generated
from tests.tiny_models import save_tiny, write_tokenizer

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).with_suffix(".ran").touch()


class OddConfig(LlamaConfig):
    model_type = "odd_llama"


class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama that calls itself something else and brings the code to say so."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tmp_path / "model"
    save_tiny("llama", model)
    write_tokenizer(model, 97)
    config = json.loads((model / "config.json").read_text())
    code = {"AutoConfig": "modeling_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
    config |= {"model_type": "odd_llama", "architectures": ["OddForCausalLM"], "auto_map": code}
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling_odd.py").write_text(CODE)
    return model


def has_run(folder: Path) -> bool:
    return any(folder.parent.rglob("*.ran"))


def test_code_of_a_checkpoint_does_not_run_by_itself(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="--trust-remote-code"):
        LLM(folder)
    assert not has_run(folder)


def test_trusted_code_runs_like_an_architecture_that_is_built_in(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = distinct_rows()
    with LLM(folder, trust_remote_code=True) as llm:
        outputs = llm.generate([row.prompt for row in rows], SamplingParams(max_tokens=NUM_NEW, temperature=0))
    assert has_run(folder)
    assert "is not verified" in caplog.text
    assert [list(output.outputs[0].token_ids) for output in outputs] == [
        generated("llama", row.prompt, row.num_new) for row in rows
    ]


def test_code_that_cannot_be_read_is_an_error_that_says_so(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "odder_llama"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_odd.py").write_text("import a_package_that_nobody_has")
    with pytest.raises(UnsupportedModelError, match="a_package_that_nobody_has"):
        LLM(folder, trust_remote_code=True)
