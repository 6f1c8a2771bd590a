"""`headrace run` in a process of its own, on a model that its `--memory` does not hold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.units import MIB
from tests.integration.commands import start_headrace
from tests.integration.held_budgets import named_size
from tests.integration.streamed_models import layer_file, save_sharded

pytestmark = pytest.mark.slow

NUM_LAYERS, NUM_ROWS = 24, 2_000
SHAPE = ["--max-num-seqs", 4, "--max-num-batched-tokens", 32, "--max-model-len", 64]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """290 MiB in layers of 12 MiB."""
    folder = tmp_path_factory.mktemp("large")
    save_sharded(folder, hidden_size=640, num_layers=NUM_LAYERS, shard="40MB")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def memory(original: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a refusal says would do."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "rows").write_text('{"prompt": [1, 2]}\n')
    with start_headrace(
        "run", folder / "rows", "-o", folder / "out", "-m", original, "--memory", "100MiB", *SHAPE
    ) as refused:
        stderr = refused.communicate(timeout=300)[1].decode()
    assert refused.returncode == 2, stderr
    return f"{named_size(stderr) // MIB + 1}MiB"


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may spoil: hard links to all files but one."""
    spoiled = layer_file(original, NUM_LAYERS // 2)
    folder = tmp_path / "model"
    folder.mkdir()
    for file in original.iterdir():
        if file == spoiled:
            shutil.copyfile(file, folder / file.name)
        else:
            (folder / file.name).hardlink_to(file)
    return folder


def run_until_a_row_is_done(
    folder: Path, model: Path, memory: str, act: Callable[[subprocess.Popen[bytes]], None]
) -> tuple[int, str, list[str]]:
    """Starts a long job and acts once it has written something; returns its status, stderr and the ids in its output.

    A job that would hang fails by the time limits, which are far beyond what it takes.
    """
    row = {"prompt": [1, 5, 9], "ignore_eos": True, "max_tokens": 4}
    (folder / "rows").write_text((json.dumps(row) + "\n") * NUM_ROWS)
    out = folder / "out"
    with start_headrace("run", folder / "rows", "-o", out, "-m", model, "--memory", memory, *SHAPE) as job:
        deadline = time.monotonic() + 300
        while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.01)
        act(job)
        try:
            stderr = job.communicate(timeout=300)[1].decode()
        finally:
            job.kill()
    assert "read in every sweep" in stderr
    assert "Traceback" not in stderr
    return job.returncode, stderr, [json.loads(line)["id"] for line in out.read_bytes().splitlines()]


def test_ctrl_c_in_the_midst_of_streaming_leaves_whole_finished_rows(model: Path, memory: str, tmp_path: Path) -> None:
    status, stderr, ids = run_until_a_row_is_done(tmp_path, model, memory, lambda job: job.send_signal(signal.SIGINT))
    assert status == 130, stderr
    assert 0 < len(ids) < NUM_ROWS
    assert ids == [f"line-{number + 1}" for number in range(len(ids))]
    assert f"interrupted: {len(ids):,} of {NUM_ROWS:,} rows are finished" in stderr


def test_a_file_that_is_truncated_ends_the_command_with_its_name_and_status_1(
    model: Path, memory: str, tmp_path: Path
) -> None:
    file = layer_file(model, NUM_LAYERS // 2)
    status, stderr, ids = run_until_a_row_is_done(
        tmp_path, model, memory, lambda job: os.truncate(file, file.stat().st_size // 2)
    )
    assert status == 1, stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("headrace: sweep ") and str(file) in last
    assert last.endswith("changed while it was in use; start again, and leave the file alone until the end")
    assert 0 < len(ids) < NUM_ROWS
    assert ids == [f"line-{number + 1}" for number in range(len(ids))]
