"""`--memory` bounds the whole process: measured from outside, over models, budgets and shapes of work."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from headrace.units import MIB, format_bytes, parse_bytes
from tests.integration.commands import headrace, start_headrace
from tests.integration.held_budgets import assert_held, named_size, run_with_what_it_names
from tests.integration.measured_jobs import JobRunner, MeasuredJob, job_runner, watch
from tests.tiny_models import write_tokenizer

NUM_QUICK, NUM_SLOW = 3, 75

WIDE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
}
"""88 million parameters: 336 MiB in fp32; the head and its logits are large beside the layers."""
DEEP = {**WIDE, "num_hidden_layers": 16, "vocab_size": 8000}
"""219 million parameters: 836 MiB in fp32, of which 49 MiB are enough at a time."""


@pytest.fixture(scope="module")
def jobs() -> Iterator[JobRunner]:
    with job_runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "config.json").write_text(json.dumps(WIDE))
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("deep")
    model = AutoModelForCausalLM.from_config(LlamaConfig(**DEEP), dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="300MB")
    del model
    write_tokenizer(folder, DEEP["vocab_size"])
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260k-hf"


def random_job(seed: int, stories: Path, wide: Path, deep: Path) -> MeasuredJob:
    draw = random.Random(seed)
    model, least, most = draw.choice([(wide, 600, 1200), (deep, 500, 1500), (deep, 500, 900), (stories, 330, 600)])
    is_wide = model is not stories
    options: dict[str, object] = {
        "memory": draw.randint(least, most) * MIB,
        "dtype": draw.choice(["float32", "float32", "bfloat16"]),
        "num_micro_batches": draw.choice([1, 1, 2, 3]),
        "enable_prefix_caching": draw.random() < 0.8,
    }
    if model is wide:
        options["load_format"] = "dummy"
    if draw.random() < 0.3:
        options["max_num_seqs"] = draw.choice([1, 8, 100, 400])
    if draw.random() < 0.3:
        options["max_num_batched_tokens"] = draw.choice([8, 100, 700, 2048])
    if draw.random() < 0.3:
        options["max_model_len"] = draw.choice([100, 512])
    longest = draw.choice([20, 100, 400])
    return MeasuredJob(
        model=str(model),
        options=options,
        num_rows=draw.choice([4, 10]) if is_wide else draw.choice([20, 60]),
        prompt_tokens=(1, longest),
        max_tokens=(1, draw.choice([3, 12])),
        logprobs=draw.choice([None, None, 0, 20]),
        seed=seed,
        num_threads=draw.choice([1, 1, 2]),
    )


@pytest.mark.parametrize("seed", range(NUM_QUICK))
def test_a_job_stays_within_its_budget_or_is_refused_with_a_size_that_does(
    seed: int, jobs: JobRunner, stories: Path, wide: Path, deep: Path
) -> None:
    run_with_what_it_names(jobs, random_job(seed, stories, wide, deep))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_QUICK, NUM_QUICK + NUM_SLOW))
def test_many_more_jobs_stay_within_their_budgets(
    seed: int, jobs: JobRunner, stories: Path, wide: Path, deep: Path
) -> None:
    run_with_what_it_names(jobs, random_job(seed, stories, wide, deep))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_smallest_budget_that_a_refusal_names_is_not_far_from_what_is_used(
    dtype: str, jobs: JobRunner, wide: Path, record_figure: Callable[[str, str], None]
) -> None:
    options = {"memory": 300 * MIB, "load_format": "dummy", "dtype": dtype}
    measured = run_with_what_it_names(
        jobs, MeasuredJob(model=str(wide), options=options, num_rows=3, max_tokens=(1, 4))
    )
    limit = parse_bytes(re.search(r"--memory (\S+ \S+);", measured.description)[1])  # type: ignore[index]
    assert measured.peak_bytes > 0.7 * limit
    record_figure(f"88M model in {dtype}, smallest --memory that is accepted", format_bytes(limit))
    record_figure(f"88M model in {dtype}, peak memory with it", format_bytes(measured.peak_bytes))


@pytest.mark.slow
@pytest.mark.parametrize("memory", [520, 540])
def test_a_long_job_that_touches_all_of_its_cache_stays_within_the_budget(
    memory: int, jobs: JobRunner, stories: Path, record_figure: Callable[[str, str], None]
) -> None:
    job = MeasuredJob(
        model=str(stories),
        options={"memory": memory * MIB},
        num_rows=600,
        prompt_tokens=(300, 500),
        max_tokens=(1, 10),
    )
    measured = jobs.run(job)
    assert_held(job, measured)
    assert measured.peak_bytes > 0.9 * memory * MIB, "the cache was not touched"
    record_figure(f"a long job with --memory {memory}MiB, peak memory", format_bytes(measured.peak_bytes))


def test_the_command_in_a_process_of_its_own_stays_within_its_budget(stories: Path, tmp_path: Path) -> None:
    rows = [{"prompt": [1, *range(3, 300 + n)], "max_tokens": 1 + n % 9, "temperature": 1.0} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = start_headrace(
        "run", tmp_path / "rows.jsonl", "-o", tmp_path / "out.jsonl", "--model", stories, "--memory", "640MiB",
        "--report", tmp_path / "report.json",
    )  # fmt: skip
    with command:
        assert command.stderr is not None
        seen = watch(command.pid)
        told = command.stderr.read().decode()
    assert command.returncode == 0, told
    reported = json.loads((tmp_path / "report.json").read_text())["peak_memory_bytes"]
    assert max(seen, reported) <= 640 * MIB
    assert reported == pytest.approx(seen, rel=0.02)


def test_too_little_memory_is_one_line_and_status_2(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Once"}\n')
    ran = headrace(
        "run", tmp_path / "rows.jsonl", "-o", tmp_path / "out.jsonl", "--model", stories, "--memory", "100MiB"
    )
    assert (ran.status, ran.stdout) == (2, b"")
    assert "Nothing was loaded" in ran.stderr.splitlines()[-1]
    assert named_size(ran.stderr) > 100 * MIB
    assert sum("headrace:" in line for line in ran.stderr.splitlines()) == 1


def test_a_context_that_does_not_fit_is_refused_before_anything_is_loaded(jobs: JobRunner, wide: Path) -> None:
    options = {"memory": 730 * MIB, "load_format": "dummy", "max_model_len": 2048, "max_num_batched_tokens": 64}
    job = MeasuredJob(model=str(wide), options=options, num_rows=2, prompt_tokens=(1, 20), max_tokens=(1, 2))
    measured = run_with_what_it_names(jobs, job)
    assert measured.limits[0] == 2048
