"""The trace of a run shows what its schedule says: for the overlapped executor and for the serial one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.executor.executor import Schedule
from headrace.schedule.steps import serial_steps, sweep_steps
from headrace.trace import TraceFile
from tests.parity.harness import Shape, distinct_rows, executor_of, make_prompt, make_rig, tiny_engine_model
from tests.tiny_models import save_tiny, write_tokenizer


def spans_by_track(file: Path) -> dict[str, list[str]]:
    events = json.loads(file.read_text())
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    found: dict[str, list[str]] = {}
    for event in events:
        if event["ph"] == "X":
            found.setdefault(tracks[event["tid"]], []).append(event["name"])
    return found


def test_a_streamed_run_shows_reading_waiting_and_computing(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    with LLM(
        tmp_path / "model", disk=tmp_path, weights_on_device=0, kv_on_device=0, trace=tmp_path / "trace.json"
    ) as llm:
        llm.generate([make_prompt(40)], SamplingParams(max_tokens=3, temperature=0))
    found = spans_by_track(tmp_path / "trace.json")
    assert found["sweeps"] == ["sweep"] * 3
    assert found["sampling"] == ["sample"] * 3
    assert found["micro-batch 0"].count("attention 2") == 3
    assert found["weights"].count("Bring layer 1") == 3
    assert found["KV of micro-batch 0"].count("StoreKV attention 0") == 3
    reading = Counter(name for track, names in found.items() if "headrace-disk" in track for name in names)
    assert reading["layer 0"] >= 3
    moving = Counter(name for track, names in found.items() if "headrace-scratch" in track for name in names)
    assert moving["KV of layer 1"] == 2  # the first sweep has nothing to read
    assert moving["KV of layer 1, home"] == 3


def test_a_run_with_experts_shows_which_are_read_and_who_waits_for_them(tmp_path: Path) -> None:
    save_tiny("mixtral_many", tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    with LLM(tmp_path / "model", disk=tmp_path, weights_on_device=0, trace=tmp_path / "trace.json") as llm:
        llm.generate([make_prompt(1)], SamplingParams(max_tokens=3, temperature=0))
    found = spans_by_track(tmp_path / "trace.json")
    assert found["weights"].count("experts 1 of micro-batch 0") == 3
    assert found["weights"].count("DropExperts experts 1") == 3
    reading = Counter(name for track, names in found.items() if "headrace-disk" in track for name in names)
    assert any(name.startswith("expert ") and name.endswith(" of layer 1") for name in reading)


def test_a_run_in_memory_shows_its_layers(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    write_tokenizer(tmp_path / "model", 97)
    with LLM(tmp_path / "model", memory="2GiB", trace=tmp_path / "trace.json") as llm:
        llm.generate([make_prompt(1)], SamplingParams(max_tokens=3, temperature=0))
    assert spans_by_track(tmp_path / "trace.json")["micro-batch 0"].count("layer 1") == 3


@pytest.mark.parametrize("schedule", [sweep_steps, serial_steps])
def test_both_schedules_resume_the_same_places(schedule: Schedule, tmp_path: Path) -> None:
    shape = Shape(num_micro_batches=2, schedule=schedule)
    rig = make_rig(tiny_engine_model("llama"), shape)
    with TraceFile(tmp_path / "trace.json") as trace:
        rig.executor = replace(executor_of(rig), trace=trace)
        rig.run(distinct_rows())
    found = spans_by_track(tmp_path / "trace.json")
    num_sweeps = len(found["sweeps"])
    assert Counter(found["micro-batch 0"]) == dict.fromkeys(
        ["embedding 0", *(f"{kind} {layer}" for layer in range(3) for kind in ("layer", "attention")), "head 0"],
        num_sweeps,
    )
    brings = found["weights"].count("Bring layer 0")
    assert brings == num_sweeps if schedule is sweep_steps else brings > num_sweeps
