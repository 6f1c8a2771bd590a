"""The benchmark of models beyond memory runs end to end at a tiny size, and its figures agree with each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.beyond_cases import CASES
from benchmarks.beyond_result import summary
from benchmarks.llama_shape import LlamaShape
from benchmarks.memory_cap import memory_cap
from benchmarks.physical_limit import bucket, buckets, limit
from benchmarks.processes import Figures
from benchmarks.schedule_search import search
from benchmarks.weight_files import cached_bytes, drop_from_cache

ROOT = Path(__file__).resolve().parents[2]
SHAPE = LlamaShape(
    vocab_size=10,
    hidden_size=4,
    intermediate_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=2,
    max_position_embeddings=16,
    tie_word_embeddings=False,
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_tiny_case_measures_headrace_and_its_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.beyond_memory", "--case", "tiny", "--dtype", "float32"]
    command += ["--repeats", "1", "--systems", "headrace", "headrace int4", "--cap", "none"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "result.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert {"cpu", "commit", "date", "command", "versions", "load_average"} <= result.keys()
    assert result["cap"]["kind"] == "none" and result["cap"]["reason"]
    assert set(result["systems"]) == {"headrace", "headrace int4"}

    (run,) = result["systems"]["headrace"]["runs"]
    (packed,) = result["systems"]["headrace int4"]["runs"]
    assert "llama, int4-64 with float32" in packed["description"] and " in int8, " in packed["description"]
    assert packed["bytes_per_sweep"] < run["bytes_per_sweep"] and packed["time_to_limit"] > 0
    answers = result["rows"] * result["generated_tokens_per_row"]
    assert run["generated_tokens"] == run["sampled_tokens"] == answers
    assert run["generated_tokens_per_second"] == pytest.approx(answers / run["seconds"])
    in_micro_batches = sum(sum(kind["micro_batch_tokens"]) * kind["times"] for kind in run["kinds_of_sweeps"])
    computed = result["prompt_tokens_per_row"] + result["generated_tokens_per_row"] - 1
    assert in_micro_batches == result["rows"] * computed, "every token but the last of each answer is computed, once"
    assert run["most_rows_in_a_sweep"] <= result["rows"]
    assert run["sweeps"] >= result["generated_tokens_per_row"]
    assert 0 < run["bytes_per_sweep"] < result["model_bytes"]
    # The first layers were there already, and those after the last sweep were on their way.
    assert abs(run["weights_read_bytes"] / run["bytes_per_sweep"] - run["sweeps"]) < 1
    assert 0 <= run["waited_for_weights_seconds"] < run["seconds"]
    assert run["peak_bytes"] > 0

    bound = run["limit"]
    assert bound["read_bytes"] == run["bytes_per_sweep"] * run["sweeps"]
    assert bound["seconds"] == max(bound["reading_seconds"], bound["computing_seconds"]) > 0
    assert run["time_to_limit"] == pytest.approx(run["seconds"] / bound["seconds"])
    assert run["time_to_limit_of_sweeps"] <= run["time_to_limit"]
    assert result["ratios"]["time_to_limit"] == run["time_to_limit"]
    assert result["ratios"]["streaming_to_plain_reader"] == run["streaming_to_plain_reader"] > 0


def test_the_limit_is_the_slower_of_reading_and_computing() -> None:
    kinds = [
        {"micro_batch_tokens": [8, 3], "sampled_tokens": 3, "times": 1},
        {"micro_batch_tokens": [3], "sampled_tokens": 1, "times": 2},
    ]
    run = {"bytes_per_sweep": 100, "kinds_of_sweeps": kinds}
    matrices = 4 * 4 + 2 * 4 + 2 * 4 + 4 * 4 + 3 * 8 * 4
    head = 2 * 10 * 4
    large, small = (2 * 3 * matrices * 11 + 3 * head) / 1000, (2 * 3 * matrices * 3 + head) / 1000
    bound = limit(run, SHAPE, disk=50.0, matrix={"4": 1000.0, "8": 1000.0})
    assert (bound.read_bytes, bound.reading_seconds) == (300, 6.0)
    assert bound.operations == pytest.approx(1000 * (large + 2 * small))
    assert bound.computing_seconds == pytest.approx(large + 2 * small)
    assert bound.seconds == max(6.0, bound.computing_seconds)
    assert limit(run, SHAPE, disk=1.0, matrix={"4": 1000.0, "8": 1000.0}).figures()["bound_by"] == "disk"
    between = 100 / ((large + small) / 2)  # large sweeps compute for longer than they read, small ones do not
    assert limit(run, SHAPE, disk=between, matrix={"4": 1000.0, "8": 1000.0}).sweeps_seconds == pytest.approx(
        large + 2 * (large + small) / 2
    )


def test_a_micro_batch_is_held_against_the_next_power_of_two_of_tokens() -> None:
    assert [bucket(tokens) for tokens in (1, 2, 3, 4, 5, 1024, 1025)] == [1, 2, 4, 4, 8, 1024, 2048]
    assert buckets({"kinds_of_sweeps": [{"micro_batch_tokens": [3, 4, 100]}, {"micro_batch_tokens": [4]}]}) == [4, 128]


def test_ratios_compare_medians_and_the_best_batch() -> None:
    headrace = [{"generated_tokens_per_second": rate, "time_to_limit": 1.5, "peak_bytes": 1} for rate in (1, 9, 6)]
    slow = [{"generated_tokens_per_second": 2.0, "peak_bytes": 1}]
    fast = [{"generated_tokens_per_second": 3.0, "peak_bytes": 1}]
    failed = [{"failed": "out of memory"}]
    told = summary(
        {
            "headrace": headrace,
            "headrace int8": headrace[1:2],
            "accelerate, batch 1": slow,
            "accelerate, batch 8": fast,
            "accelerate, batch 32": failed,
        }
    )
    assert told["ratios"]["rate_to_best_accelerate"] == 2.0
    assert told["ratios"]["int8 rate_to_best_accelerate"] == 3.0
    assert told["ratios"]["best_accelerate"] == "accelerate, batch 8"
    assert told["systems"]["accelerate, batch 32"] == {"runs": failed}


class RatesByOptions:
    """A bench whose runs are as fast as a table says."""

    case = CASES["1b"]
    default_rows_at_a_time = 8

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates = rates

    def headrace(self, options: Mapping[str, int], cap: object) -> Figures:
        rate = self.rates.get(", ".join(f"{name} {value}" for name, value in options.items()), 1.0)
        return {"failed": "does not fit"} if rate == 0 else {"generated_tokens_per_second": rate, "sweeps": 1}


def test_the_search_tries_better_options_together_and_says_how_far_the_defaults_are_from_the_best() -> None:
    together = "max_num_seqs 4, max_num_batched_tokens 512"
    rates = {"": 2.0, "max_num_seqs 4": 3.0, "max_num_batched_tokens 512": 2.5, "num_micro_batches 4": 0, together: 4.0}
    told: list[str] = []
    found = search(RatesByOptions(rates), None, tell=told.append)  # type: ignore[arg-type]
    assert found["best_options"] == {"max_num_seqs": 4, "max_num_batched_tokens": 512}
    assert (found["best_generated_tokens_per_second"], found["best_to_default"]) == (4.0, 2.0)
    assert found["default_runs"] == [2.0, 2.0]
    assert {"options": {"num_micro_batches": 4}, "failed": "does not fit"} in found["tried"]
    assert len(told) == len(found["tried"])


class Groups:
    """A tree that looks like a mounted cgroup file system of version 2."""

    def __init__(self, folder: Path, controllers: str, enabled: str) -> None:
        self.root = folder / "cgroup"
        self.own = self.root / "user" / "session"
        self.own.mkdir(parents=True)
        (self.root / "cgroup.controllers").write_text(controllers)
        (self.own / "cgroup.subtree_control").write_text("")
        (self.own.parent / "cgroup.subtree_control").write_text(enabled)
        self.mounts, self.membership = folder / "mounts", folder / "membership"
        self.mounts.write_text(f"cgroup2 {self.root} cgroup2 rw 0 0\n")
        self.membership.write_text("0::/user/session\n")


def test_a_group_is_made_where_children_may_bound_memory(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "cpu memory", "memory")
    with (
        pytest.raises(OSError),  # only the kernel's own file systems remove a folder with its files
        memory_cap("cgroup", 1000, list, mounts=groups.mounts, own=groups.membership) as cap,
    ):
        (made,) = groups.own.parent.glob("headrace-benchmark-*")
        assert (made / "memory.max").read_text() == "1000"
        assert cap.figures() == {"kind": "cgroup", "limit_bytes": 1000}
        assert cap.join is not None
        cap.join()
        assert (made / "cgroup.procs").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("controllers", "enabled", "reason"),
    [("cpu", "cpu", "do not control memory"), ("cpu memory", "cpu", "does not let its children bound memory")],
)
def test_without_a_group_the_reason_is_told(tmp_path: Path, controllers: str, enabled: str, reason: str) -> None:
    groups = Groups(tmp_path, controllers, enabled)
    with memory_cap("cgroup", 1000, list, mounts=groups.mounts, own=groups.membership) as cap:
        assert cap.kind == "none" and reason in cap.reason
    assert not list(groups.root.rglob("headrace-benchmark-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux about its file cache")
def test_evicting_empties_the_file_cache_beyond_the_bound(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 20))
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    try:
        held = cached_bytes(file)
    except OSError:
        pytest.skip("this kernel does not say what it caches")
    drop_from_cache(file)
    if cached_bytes(file) == held:
        pytest.skip("this file system lives in the file cache")
    file.read_bytes()
    assert cached_bytes(file) == 1 << 20
    with memory_cap("evict", 1 << 19, lambda: [file]) as cap, cap.beside(os.getpid()):
        while cached_bytes(file):
            pass
    assert cap.figures()["most_seen_bytes"] > 1 << 20
