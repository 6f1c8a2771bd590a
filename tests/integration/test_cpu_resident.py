"""The benchmark of models in memory runs end to end at a tiny size, and says of its figures what they show."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import cpu_resident
from benchmarks.dummy_model import make_model
from benchmarks.peer_environments import PEERS, PeerMissingError, peer_python, wanted
from benchmarks.processes import Figures, measure_in_process
from benchmarks.resident_bench import ResidentBench
from benchmarks.resident_contender import Contender
from benchmarks.resident_result import BEST, SINGLE, Setting, agreement, best_settings, medians, ratios, table
from benchmarks.resident_shapes import SHAPES
from benchmarks.resident_systems import SYSTEMS, Variant
from benchmarks.systems.resident import Arrivals, Prompts, measure_batches
from benchmarks.workloads import Workload, random_tokens, worked_examples

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_tiny_shape_measures_headrace_against_transformers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.cpu_resident", "--shape", "tiny-llama", "--workload", "16/4"]
    command += ["--batch-sizes", "1", "4", "--precisions", "full", "int8", "--systems", "headrace", "transformers"]
    command += ["--repeats", "2", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "result.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert {"cpu", "commit", "date", "command", "versions", "threads"} <= result.keys()
    assert {name: set(found) for name, found in result["systems"].items()} == {
        "headrace": {"full", "int8"},
        "transformers": {"full"},
    }
    for by_precision in result["systems"].values():
        for entry in by_precision.values():
            assert entry[SINGLE]["batch_size"] == 1
            for kind in (SINGLE, BEST):
                assert entry[kind]["kv_dtype"] in ("bfloat16", "float32")
                assert len(entry[kind]["runs"]) == 2
                for run in entry[kind]["runs"]:
                    assert run["generated_tokens_per_second"] == pytest.approx(4 * run["rows"] / run["seconds"])
                    assert 0 < run["ttft_seconds"] < run["seconds"]
                    assert run["tpot_seconds"] > 0 and run["peak_bytes"] > 0
    compared = result["ratio_to_best_peer"]
    assert set(compared["full"]["tokens_per_second"]["to_peers"]) == {"transformers, full"}
    assert compared["int8"]["tpot_of_a_single_row"]["best_peer"] == "transformers, full"
    assert result["first_tokens_as_headrace_in_float32"]["transformers, full"]["float32"] == 1.0


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_tensors_that_transformers_loads(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    files = {tensor: size for file in shape.files() for tensor, size in file.items()}
    if name.startswith("tiny"):
        make_model(tmp_path, shape, "bfloat16")
        loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        assert {tensor: tuple(value.shape) for tensor, value in loaded.state_dict().items() if tensor in files} == files
        assert loaded.config.model_type == shape.model_type
        tied = loaded.get_output_embeddings().weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
        assert tied is not ("lm_head.weight" in files)
    numbers = sum(torch.Size(size).numel() for size in files.values())
    assert 10**6 < numbers < 1.5e9


def figures(rate: float, tpot: float = 1.0, size: int = 1) -> Figures:
    return {
        "batch_size": size,
        "generated_tokens_per_second": rate,
        "seconds": 2.0,
        "ttft_seconds": 1.0,
        "tpot_seconds": tpot,
        "peak_bytes": 5,
    }


def test_the_best_settings_may_be_of_two_variants() -> None:
    tried = {
        "bfloat16": {"runs": [figures(1, tpot=0.5), figures(8, size=8)]},
        "float32": {"runs": [figures(0.5, tpot=0.9), figures(9, size=8), {"batch_size": 16, "failed": "memory"}]},
        "broken": {"failed": "not installed"},
    }
    assert best_settings(tried) == {SINGLE: Setting("bfloat16", 1), BEST: Setting("float32", 8)}
    assert best_settings({"broken": {"failed": "not installed"}}) == {}


def test_medians_leave_out_what_failed() -> None:
    told = medians([figures(1), figures(9), {"failed": "memory"}, figures(6)])
    assert told["generated_tokens_per_second"] == 6 and told["peak_bytes"] == 5
    assert len(told["runs"]) == 4
    assert medians([{"failed": "memory"}]) == {"runs": [{"failed": "memory"}]}


def entry(rate: float, tpot: float) -> Figures:
    more = {"variant": "v", "kv_dtype": "float32", "trial": {}}
    return {SINGLE: {**figures(1, tpot=tpot), **more}, BEST: {**figures(rate, size=8), **more}, "trial": {}}


ENTRIES: Mapping[str, Figures] = {
    "headrace": {"full": entry(12, 0.1), "int8": entry(30, 0.05)},
    "slow": {"full": entry(6, 0.2), "int4": entry(100, 0.01)},
    "fast": {"full": entry(10, 0.08), "int8": {"trial": {"v": {"failed": "not built"}}}},
}


def test_a_precision_is_held_against_peers_of_this_precision_and_of_higher_ones() -> None:
    told = ratios(ENTRIES)
    assert told["full"]["tokens_per_second"] == {
        "to_best_peer": 1.2,
        "best_peer": "fast, full",
        "to_peers": {"slow, full": 2.0, "fast, full": 1.2},
    }
    assert told["full"]["tpot_of_a_single_row"]["to_best_peer"] == pytest.approx(1.25)
    assert told["int8"]["tokens_per_second"]["best_peer"] == "fast, full"
    assert told["int8"]["tpot_of_a_single_row"]["to_best_peer"] == pytest.approx(0.05 / 0.08)
    assert "int4" not in told, "Headrace was not measured in it"


def test_the_table_has_a_line_for_each_system_and_precision() -> None:
    heading, *lines = table(ENTRIES)
    assert "ms/token" in heading
    assert len(lines) == 6
    assert any("50.0 (v)" in line and "30.0 (8, v)" in line and "float32" in line for line in lines)
    assert any("not built" in line for line in lines)


def test_first_tokens_are_compared_where_batches_are_equal() -> None:
    reference = {"runs": [{"batch_size": 2, "first_tokens": [5, 6]}, {"batch_size": 4, "first_tokens": [1, 2, 3, 4]}]}
    tried = {
        "near": {"runs": [{"batch_size": 4, "first_tokens": [1, 2, 3, 0]}, {"batch_size": 9, "first_tokens": [1]}]},
        "none": {"failed": "no"},
    }
    assert agreement(tried, reference) == {"near": 0.75, "none": None}
    assert agreement(tried, None) == {"near": None, "none": None}


class Answerer:
    """A system that answers with its row's number; some batches take long, some do not fit."""

    def __init__(self, slow: int, broken: int) -> None:
        self.asked: list[int] = []
        self._slow, self._broken = slow, broken

    def __call__(self, prompts: Prompts, new_tokens: int, batch_size: int) -> Arrivals:
        self.asked.append(batch_size)
        if batch_size == self._broken:
            raise RuntimeError("no memory")
        arrivals, start = Arrivals(len(prompts)), time.perf_counter()
        while batch_size == self._slow and time.perf_counter() < start + 0.05:
            pass
        for row in range(len(prompts)):
            for _ in range(new_tokens):
                arrivals.add(row, row)
        return arrivals


def batches(*sizes: int) -> Figures:
    made = [{"batch_size": size, "prompts": [[1]] * size} for size in sizes]
    return {"warm_up": [[1, 2]], "new_tokens": 4, "batches": made, "least_gain": 1.0}


def test_batches_are_measured_until_one_is_slower_than_a_smaller_one() -> None:
    answerer = Answerer(slow=8, broken=99)
    runs = measure_batches(batches(8, 9, 16), answerer)
    assert answerer.asked[0] == 1, "the warm-up"
    assert answerer.asked[1:3] == [8, 9]
    assert runs[0]["rows"] == 8 and runs[0]["first_tokens"] == list(range(8))
    answerer = Answerer(slow=9, broken=99)
    runs = measure_batches(batches(8, 9, 16), answerer)
    assert [run["batch_size"] for run in runs] == [8, 9], "nine rows were slower"


def test_what_a_batch_ended_with_is_told_beside_the_smaller_ones() -> None:
    runs = measure_batches(batches(1, 8, 16), Answerer(slow=1, broken=8))
    assert "failed" not in runs[0]
    assert runs[1:] == [{"batch_size": 8, "failed": "RuntimeError: no memory"}]


def test_an_answer_of_another_length_is_a_failure() -> None:
    (run,) = measure_batches({**batches(3), "new_tokens": 5}, lambda prompts, tokens, size: short(prompts))
    assert "expected 5" in run["failed"]


def short(prompts: Prompts) -> Arrivals:
    arrivals = Arrivals(len(prompts))
    for row in range(len(prompts)):
        arrivals.add(row, 1)
    return arrivals


def test_random_prompts_are_the_same_each_time_and_no_beginning_of_each_other() -> None:
    one, eight = (random_tokens(50, num_rows=n, prompt_tokens=6, new_tokens=3, seed=n) for n in (1, 8))
    assert one == random_tokens(50, num_rows=1, prompt_tokens=6, new_tokens=3, seed=1)
    assert {len(row.prompt_ids) for row in eight.rows} == {6}
    assert one.rows[0] not in eight.rows
    assert all(0 <= token < 50 for row in eight.rows for token in row.prompt_ids)


def test_questions_stand_behind_the_same_worked_examples(tmp_path: Path) -> None:
    folder = tmp_path / "tasks" / "gsm8k"
    folder.mkdir(parents=True)
    tasks = [{"question": f"{number}?", "answer": f"#### {number}"} for number in range(20)]
    (folder / "test.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    found = worked_examples(tmp_path, lambda text: list(text.encode()), num_rows=5, num_examples=3, new_tokens=7)
    texts = [bytes(row.prompt_ids).decode() for row in found.rows]
    assert len(texts) == 5 and found.num_output_tokens == 35
    assert all(text.startswith("Question: 0?\nAnswer: #### 0\n\nQuestion: 1?") for text in texts)
    assert texts[0].endswith("#### 2\n\nQuestion: 3?\nAnswer:")


@pytest.mark.parametrize("text", ["512", "512/x", "1/1", "gsm", "128/1"])
def test_a_workload_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="512/32"):
        cpu_resident._workload(text)


def test_a_process_gets_variables_and_ends_at_its_limit() -> None:
    program = "tests.integration.echo_process"
    assert measure_in_process(program, {"show": "A_VARIABLE"}, variables={"A_VARIABLE": "here"}) == {"shown": "here"}
    assert measure_in_process(program, {"forever": True}, limit_seconds=0.5) == {"failed": "not finished after 0.5 s"}


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(PeerMissingError, match="llama-cpp-python"):
        peer_python("llama.cpp", tmp_path)
    assert not (tmp_path / "llama.cpp" / "made.json").exists()


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    made = tmp_path / "vllm" / "made.json"
    made.parent.mkdir()
    made.write_text(json.dumps(wanted("vllm")))
    assert peer_python("vllm", tmp_path) == str(tmp_path / "vllm" / "bin" / "python")
    assert list(made.parent.iterdir()) == [made]


class Bench:
    """Runs nothing; says what it was asked for, and has no memory for more than some rows."""

    def __init__(self, most_rows: int) -> None:
        self.asked: list[list[int]] = []
        self._most_rows = most_rows

    def run(self, name: str, variant: Variant, some: Mapping[int, Workload], least_gain: float = 0.0) -> Figures:
        self.asked.append(sorted(some))
        if max(some) > self._most_rows:
            return {"failed": "ended by signal 9 (out of memory)"}
        rate = 2.0 if variant.name == "float32" else 1.0
        runs = [{**figures(rate * size, tpot=rate, size=size), "first_tokens": [1]} for size in some]
        return {"kv_dtype": variant.name, "runs": runs}


def rows(sizes: list[int]) -> dict[int, Workload]:
    return {size: random_tokens(9, num_rows=size, prompt_tokens=2, new_tokens=2, seed=size) for size in sizes}


def test_a_contender_is_tried_in_every_way_and_then_measured_at_its_best() -> None:
    bench, told = Bench(most_rows=16), []
    contender = Contender("headrace", "full", SYSTEMS["headrace"].variants["full"], bench, told.append)  # type: ignore[arg-type]
    contender.try_all(rows([1, 8, 16, 32]))
    assert bench.asked == [[1, 8, 16, 32], [1, 8, 16]] * 2, "without the batch that did not fit"
    assert contender.settings == {SINGLE: Setting("bfloat16", 1), BEST: Setting("float32", 16)}
    bench.asked.clear()
    contender.measure(rows)
    assert bench.asked == [[1], [16]]
    found = contender.figures()
    assert found[BEST]["generated_tokens_per_second"] == 32 and found[BEST]["kv_dtype"] == "float32"
    assert "first_tokens" not in json.dumps(found)
    assert any("float32" in line and "16: 32.00" in line for line in told)


def test_every_peer_has_an_environment() -> None:
    assert {system.peer for system in SYSTEMS.values()} - {None} == set(PEERS)
    assert all(system.variants for system in SYSTEMS.values())


def test_a_peer_that_cannot_be_installed_is_told_and_nothing_else_fails(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("no folder")
    bench = ResidentBench(model=tmp_path, vocab_size=9, work=tmp_path, peers=nowhere, threads=1, limit_seconds=60)
    (variant, *_) = SYSTEMS["vllm"].variants["full"]
    assert "failed" in bench.run("vllm", variant, rows([1]))
