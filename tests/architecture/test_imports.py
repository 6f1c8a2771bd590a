"""Imports go down only, torch stays out of the rooms of integers, and outside libraries have one door each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.rooms import PACKAGE, ROOMS, TOP, imported_modules, module_name, room_of, source_files, where

# Modules of torch-free rooms that may import torch all the same: they hold tensors or run a model.
WITH_TORCH = {
    "headrace.jobs.runner",
    "headrace.kv_cache.block_bytes",
    "headrace.kv_cache.pools",
    "headrace.kv_cache.slab",
    "headrace.kv_cache.stores",
    "headrace.planner.attention_rates",
    "headrace.planner.calibrate_machine",
    "headrace.planner.calibration",
    "headrace.planner.inspection",
    "headrace.planner.matrix_rates",
    "headrace.planner.model_shapes",
    "headrace.planner.timing",
}
TORCH_FREE_ROOMS = {
    "__init__",
    "cli",
    "demo",
    "errors",
    "jobs",
    "kv_cache",
    "planner",
    "schedule",
    "scheduler",
    "trace",
    "units",
}
TORCH_FREE_MODULES = {
    "headrace.bench.curve",
    "headrace.bench.measures",
    "headrace.bench.perplexity",
    "headrace.bench.picture",
    "headrace.bench.runner",
    "headrace.bench.workload",
    "headrace.checkpoint.safetensors_reader",
    "headrace.checkpoint.safetensors_writer",
    "headrace.checkpoint.tensors",
    "headrace.compression.kv_codec",
    "headrace.engine.memory_options",
    "headrace.engine.outputs",
    "headrace.engine.options",
    "headrace.engine.requests",
    "headrace.executor.pool_plan",
    "headrace.models.chat",
    "headrace.models.layer_table",
    "headrace.sampling.guidance",
    "headrace.sampling.parameters",
    "headrace.sampling.structured_outputs",
    "headrace.sampling.tokens",
    "headrace.storage.budget",
    "headrace.storage.folders",
    "headrace.storage.governor",
    "headrace.storage.own_files",
}

# library -> the one file that may import it
DOORS = {
    "transformers": "models/transformers_api.py",
    "greenlet": "models/coroutine.py",
    "llguidance": "sampling/guidance.py",
    "matplotlib": "bench/picture.py",
}


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {room_of(module_name(file)) for file in source_files()} - {TOP}
    assert not rooms - set(ROOMS), "give the new room its place in tests/architecture/rooms.py"


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_only(file: Path) -> None:
    room = room_of(module_name(file))
    if room == TOP:
        return
    below = {room, *ROOMS[ROOMS.index(room) + 1 :]}
    upward = [
        f"{where(file, line)}: {room} imports {name}"
        for line, name in imported_modules(file)
        if name.startswith("headrace.") and name != "headrace.__version__" and room_of(name) not in below
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize("library", DOORS)
def test_a_library_with_a_door_is_imported_in_one_file_only(library: str) -> None:
    importing = {
        str(file.relative_to(PACKAGE))
        for file in source_files()
        for _, name in imported_modules(file)
        if name.split(".")[0] == library
    }
    assert len(importing) <= 1, f"{library} is imported in {sorted(importing)}"
    assert all(file.startswith(DOORS[library]) for file in importing), importing


def torch_free_modules() -> list[str]:
    modules = [module_name(file) for file in source_files() if file.name != "__main__.py"]
    return [
        module
        for module in modules
        if (room_of(module) in TORCH_FREE_ROOMS and module not in WITH_TORCH) or module in TORCH_FREE_MODULES
    ]


def test_torch_free_modules_do_not_import_torch() -> None:
    program = """
import importlib, json, sys
guilty = None
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
    if guilty is None and "torch" in sys.modules:
        guilty = module
print(json.dumps(guilty))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program, json.dumps(torch_free_modules())], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) is None, "this module brings torch in, though its room is to be free of it"
