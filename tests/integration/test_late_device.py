"""A whole engine over the link of a CUDA device, on a double of the device whose copies arrive only if waited for."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.engine.launch import launch_on
from headrace.engine.options import EngineOptions
from headrace.engine.tiers import CPU, Tiers
from headrace.storage.budget import Budget
from headrace.storage.cuda_link import CudaLink
from headrace.storage.folders import DiskTier
from headrace.trace import NoTrace
from headrace.units import GIB
from tests.integration.test_simulated_device import SHARES
from tests.late_runtime import LateRuntime
from tests.parity.harness import LENGTHS, generated, make_prompt
from tests.tiny_models import save_tiny, write_tokenizer


def open_on(runtime: LateRuntime, folder: Path, **options: object) -> LLM:
    """Opens the model in `folder / "model"` with a device that is behind `runtime`."""
    with ExitStack() as opened:
        link = CudaLink(runtime)
        opened.callback(link.close)
        tiers = Tiers(
            device=CPU,
            host_budget=Budget(tier="host", limit_bytes=4 * GIB, option="--memory"),
            device_budget=Budget(tier="device", limit_bytes=GIB, option="--gpu-memory"),
            disk=DiskTier(folder=folder),
            link=link,
            throttle=None,
            trace=NoTrace(),
            is_simulated=True,
        )
        asked = EngineOptions(model="model", dtype="float32", **options)  # type: ignore[arg-type]
        return LLM.holding(launch_on(tiers, asked, folder / "model", opened))


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "deepseek_v3", "qwen3_next", "mamba2"])
def test_tokens_are_those_of_generate_wherever_things_are(name: str, shares: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    before, runtime = threading.active_count(), LateRuntime(lands="late")
    prompts = [make_prompt(length) for length in LENGTHS]
    with open_on(runtime, tmp_path, num_micro_batches=6, **SHARES[shares]) as llm:
        outputs = llm.generate(prompts, SamplingParams(max_tokens=8, temperature=0))
    assert [list(output.outputs[0].token_ids) for output in outputs] == [
        generated(name, prompt, 8) for prompt in prompts
    ]
    assert threading.active_count() == before
    assert not runtime.pinned
