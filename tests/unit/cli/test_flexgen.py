"""FlexGen's options become ours, or are refused with a reason."""

from __future__ import annotations

import pytest

from headrace.cli.flexgen import flexgen_options
from headrace.cli.main import build_parser
from headrace.errors import OptionError


def mapped(*words: str) -> dict[str, object]:
    return dict(flexgen_options(build_parser().parse_args(["generate", "--model", "demo", "--device", "cpu", *words])))


def test_nothing_given_changes_nothing() -> None:
    assert mapped() == {}


def test_what_is_on_gpu_or_cpu_is_in_memory() -> None:
    assert mapped("--percent", "20", "50", "0", "100", "100", "0") == {"weights_on_device": 0.7, "kv_on_device": 1.0}


def test_batches_become_rows_and_micro_batches() -> None:
    assert mapped("--gpu-batch-size", "8", "--num-gpu-batches", "3") == {"max_num_seqs": 24, "num_micro_batches": 3}


def test_the_offload_folder_is_the_disk() -> None:
    assert mapped("--offload-dir", "/x") == {"disk": "/x"}


def test_a_compressed_cache_has_4_bits() -> None:
    assert mapped("--compress-cache") == {"kv_cache_dtype": "int4"}


@pytest.mark.parametrize(("word", "overlap"), [("true", True), ("False", False), ("0", False)])
def test_overlap_chooses_the_schedule(word: str, overlap: bool) -> None:
    assert mapped("--overlap", word) == {"overlap": overlap}


def test_what_a_cpu_does_anyway_may_be_asked_for() -> None:
    assert mapped("--cpu-cache-compute", "--pin-weight", "true") == {}


def test_a_device_has_shares_of_everything_and_its_host_others() -> None:
    words = ["generate", "--model", "demo", "--device", "simulated:1GiB,1GB/s", "--percent", "20", "50", "0", "100"]
    assert dict(flexgen_options(build_parser().parse_args([*words, "40", "60"]))) == {
        "weights_on_device": 0.2,
        "weights_on_host": 0.5,
        "kv_on_device": 0.0,
        "kv_on_host": 1.0,
        "activations_on_device": 0.4,
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [(("--pin-weight", "true"), {"pin_memory": True}), (("--cpu-cache-compute",), {"attend_on_host": True})],
)
def test_what_only_devices_with_a_host_know(words: tuple[str, ...], expected: dict[str, object]) -> None:
    asked = ["generate", "--model", "demo", "--device", "simulated:1GiB,1GB/s", *words]
    assert dict(flexgen_options(build_parser().parse_args(asked))) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--percent", "90", "20", "0", "100", "100", "0"), "weights are 90 % on GPU and 20 % on CPU"),
        (("--percent", "100", "0", "100", "0", "0", "50"), "50 % of activations on disk"),
        (("--offload-dir", "/x", "--disk", "/y"), "--offload-dir and --disk say the same"),
        (("--gpu-batch-size", "2", "--max-num-seqs", "4"), "--gpu-batch-size and --max-num-seqs say the same"),
        (("--compress-cache", "--kv-cache-dtype", "int8"), "--compress-cache and --kv-cache-dtype say the same"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        mapped(*words)


def test_no_truth_value_is_refused() -> None:
    with pytest.raises(OptionError, match="expected true or false"):
        mapped("--overlap", "maybe")
