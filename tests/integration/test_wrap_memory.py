"""Wrapping a model takes no second copy of its weights, and lets them go where they do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.units import MIB, format_bytes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LEAST_BYTES = 640 * MIB
"""More than Python with torch and the least of the model takes; less than the weights alone."""

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
import headrace
from headrace import SamplingParams
from headrace.errors import HeadraceError
from headrace.storage.process_memory import keep_freed_memory, resident_bytes

origin, memory, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
config = LlamaConfig(
    hidden_size=1024, intermediate_size=2816, num_hidden_layers=14, num_attention_heads=16, num_key_value_heads=4,
    vocab_size=8000, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
prompts = [list(range(3, 3 + length)) for length in (5, 12)]
expected = [
    model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0, len(prompt):].tolist()
    for prompt in prompts
]
if origin == "a folder":
    model.save_pretrained(folder / "model")
    del model
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.detach().sum()
before = resident_bytes()
weights = sum(parameter.nbytes for parameter in model.parameters())
found = {"weights": weights, "before": before}
limit = int(memory) or before + 400 * 2**20
try:
    with headrace.wrap(model, memory=limit, disk=folder / "disk") as llm:
        found["wrapped"] = resident_bytes()
        outputs = llm.generate(prompts, SamplingParams(max_tokens=6, temperature=0))
        found["used"] = resident_bytes()
        found["description"] = llm.description
        found["written"] = sum(file.stat().st_size for file in (folder / "disk").rglob("*.safetensors"))
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected
except HeadraceError as error:
    found["error"] = f"{type(error).__name__}: {error}"
    ids = torch.tensor([prompts[0]])
    answer = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, len(prompts[0]):]
    assert answer.tolist() == expected[0], "the model is not as it was"
found["left"] = [str(path) for path in (folder / "disk").rglob("*")]
print(json.dumps(found))
"""


def wrapped(tmp_path: Path, memory: int, origin: str = "memory") -> dict[str, object]:
    command = [sys.executable, "-c", PROGRAM, origin, str(memory), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    assert found["left"] == []
    return found


@pytest.mark.parametrize("origin", ["memory", "a folder"])
def test_weights_that_fit_are_not_copied(
    origin: str, tmp_path: Path, record_figure: Callable[[str, str], None]
) -> None:
    found = wrapped(tmp_path, 0, origin)
    assert "error" not in found and found["written"] == 0, found
    rise = max(int(found["wrapped"]), int(found["used"])) - int(found["before"])  # type: ignore[call-overload]
    assert rise < int(found["weights"]) / 2, found  # type: ignore[call-overload]
    if origin == "memory":
        record_figure(
            f"wrapping a model of {format_bytes(found['weights'])}, growth of memory with its KV cache",  # type: ignore[arg-type]
            format_bytes(rise),
        )


def test_weights_that_do_not_fit_are_let_go_and_streamed(tmp_path: Path) -> None:
    found = wrapped(tmp_path, LEAST_BYTES)
    assert "error" not in found and "read in every sweep" in str(found["description"]), found
    assert found["written"] >= found["weights"] > LEAST_BYTES  # type: ignore[operator]
    assert found["used"] <= LEAST_BYTES < found["before"]  # type: ignore[operator]


def test_a_budget_that_is_too_small_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    found = wrapped(tmp_path, 200 * MIB)
    assert str(found["error"]).startswith("BudgetError"), found
