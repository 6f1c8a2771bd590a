"""Random models, budgets and jobs: memory never exceeds the budget by more than 3 %, and no run is killed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from headrace.units import GIB, MIB
from tests.integration.held_budgets import assert_held, named_size, run_with_what_it_names
from tests.integration.measured_jobs import JobRunner, MeasuredJob, job_runner, with_memory
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import write_tokenizer

NUM_JOBS = 50

LARGER: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 8000},
    "llama_tied": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 32000},
    "mixtral": {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 6, "num_local_experts": 6},
    "gemma3_text": {"hidden_size": 640, "intermediate_size": 2048, "vocab_size": 16000, "sliding_window": 100},
    "opt": {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 6, "word_embed_proj_dim": 768},
    "mamba2": {"hidden_size": 512, "num_heads": 16, "head_dim": 64, "state_size": 32, "num_hidden_layers": 10},
}
"""What makes the tiny models take 50 to 220 MiB in fp32, in layers of 5 to 35 MiB."""
_POSITIONS = {"max_position_embeddings": 1024}

SaveModel = Callable[[str], Path]


@pytest.fixture(scope="module")
def jobs() -> Iterator[JobRunner]:
    with job_runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SaveModel]:
    """Saves a family's model when it is first asked for."""
    parent = tmp_path_factory.mktemp("families")

    def save(family: str) -> Path:
        folder = parent / family
        if not folder.exists():
            values = {**TINY_CONFIGS[family], **LARGER[family]}
            values |= _POSITIONS if "max_position_embeddings" in values else {}
            config = AutoConfig.for_model(values.pop("model_type"), **values)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.save_pretrained(folder, max_shard_size="60MB")
            del model
            write_tokenizer(folder, config.vocab_size)
        return folder

    yield save
    shutil.rmtree(parent)


@pytest.fixture(scope="module")
def highest() -> list[float]:
    """Peak through budget of every job that ran."""
    return []


def random_job(seed: int, save_model: SaveModel, jobs: JobRunner) -> MeasuredJob:
    """Draws a job, with a budget between a little below the least that works and one that holds the whole model."""
    draw = random.Random(seed)
    family = draw.choice(sorted(LARGER))
    folder = save_model(family)
    dtype = draw.choice(["float32", "float32", "bfloat16"])
    options: dict[str, object] = {
        "dtype": dtype,
        "load_format": "auto",
        "num_micro_batches": draw.choice([1, 1, 2, 3]),
        "enable_prefix_caching": draw.random() < 0.8,
        "disk": str(folder.parent / "copies"),
    }
    if draw.random() < 0.3:
        options["max_num_seqs"] = draw.choice([1, 8, 64, 300])
    if draw.random() < 0.3:
        options["max_num_batched_tokens"] = draw.choice([16, 100, 700, 2048])
    if draw.random() < 0.3:
        options["max_model_len"] = draw.choice([64, 512])
    longest = draw.choice([10, 60, 300])
    job = MeasuredJob(
        model=str(folder),
        options=options,
        num_rows=draw.choice([3, 8, 20]),
        prompt_tokens=(1, longest),
        max_tokens=(1, draw.choice([3, 8, 16])),
        logprobs=draw.choice([None, None, 5]),
        seed=seed,
        num_threads=draw.choice([1, 1, 2]),
    )
    refused = jobs.run(with_memory(job, MIB))
    assert_held(with_memory(job, MIB), refused)
    assert refused.error is not None
    all_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    all_bytes //= 2 if dtype == "bfloat16" else 1
    least = named_size(refused.error[1]) - 0.1 * GIB  # what it names is rounded up by as much
    return with_memory(job, int(least + draw.random() * (all_bytes + 0.1 * GIB)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_JOBS))
def test_no_random_job_exceeds_its_budget(
    seed: int,
    jobs: JobRunner,
    save_model: SaveModel,
    highest: list[float],
    record_figure: Callable[[str, str], None],
) -> None:
    job = random_job(seed, save_model, jobs)
    measured = run_with_what_it_names(jobs, job)
    highest.append(measured.peak_bytes / measured.budget_bytes)
    percent = 100 * max(highest)
    record_figure(
        "random models, budgets and jobs, highest peak memory", f"{percent:.1f} % of the budget, in {len(highest)}"
    )
    print(f"seed {seed}: {highest[-1]:.3f} of the budget; {measured.description}; {measured.ledger}")
