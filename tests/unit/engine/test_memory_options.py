"""Memory in transformers' spelling means the same as in ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from headrace import LLM, compat
from headrace.engine.memory_options import Size, memory_options
from headrace.errors import OptionError
from headrace.units import GIB
from tests.tiny_configs import TINY_CONFIGS

NOTHING = {"memory": None, "gpu_memory": None, "disk": None}


def test_max_memory_is_memory_of_gpu_and_machine() -> None:
    found = memory_options({0: "10GiB", "cpu": 3 * GIB}, Path("/fast/ssd"))
    assert found == {"memory": 3 * GIB, "gpu_memory": 10 * GIB, "disk": "/fast/ssd"}
    assert memory_options({"cpu": "1.5GiB"}) == {**NOTHING, "memory": 3 * GIB // 2}


def test_our_own_spelling_passes_through() -> None:
    assert memory_options() == NOTHING
    assert memory_options(memory="2GiB", gpu_memory=GIB, disk="/ssd:60GiB") == {
        "memory": 2 * GIB,
        "gpu_memory": GIB,
        "disk": "/ssd:60GiB",
    }


@pytest.mark.parametrize("own", ["memory", "gpu_memory"])
def test_limits_in_both_spellings_are_refused_by_both_names(own: str) -> None:
    with pytest.raises(OptionError, match=f"max_memory and {own} were both given"):
        memory_options({"cpu": "1GiB"}, **{own: "1GiB"})


def test_folders_in_both_spellings_are_refused_by_both_names() -> None:
    with pytest.raises(OptionError, match="offload_folder and disk were both given"):
        memory_options(None, "/a", disk="/b")


@pytest.mark.parametrize(
    ("max_memory", "message"),
    [
        ({0: "1GiB", 1: "1GiB"}, "GPU 1; this version uses one GPU"),
        ({"mps": "1GiB"}, "names 'mps'; expected 0 for the GPU and 'cpu'"),
        ({"cpu": "1GiB", "disk": "60GiB"}, "give disk='FOLDER:SIZE'"),
        ({"cpu": "much"}, "not a size: 'much'"),
        ({0: 0}, r"max_memory\[0\] is 0; expected a size"),
    ],
)
def test_what_cannot_be_meant_is_refused(max_memory: Mapping[int | str, Size], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        memory_options(max_memory)


def test_compat_has_the_same_function() -> None:
    assert compat.memory_options is memory_options


def test_an_llm_takes_both_spellings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIGS["llama"]))
    with LLM(tmp_path, load_format="dummy", device="cpu", max_memory={"cpu": "3GiB"}, offload_folder=tmp_path) as llm:
        assert "--memory 3.0 GiB" in llm.description
    with pytest.raises(OptionError, match="max_memory for GPU 0"):
        LLM(tmp_path, load_format="dummy", device="cpu", max_memory={0: "1GiB", "cpu": "3GiB"})
    with pytest.raises(OptionError, match="max_memory and memory"):
        LLM(tmp_path, memory="3GiB", max_memory={"cpu": "3GiB"})
