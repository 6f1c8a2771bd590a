"""`headrace bench` and `headrace eval` as a user types them, on small models."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import headrace
from tests.tiny_models import save_tiny

SMALL = ("--prompt-tokens", "24", "--max-tokens", "5", "--warmup", "1", "--repeats", "2")


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    """A Llama of 260,000 parameters that tells stories; context 512."""
    return shared_data / "models" / "stories260k-hf"


def found_by(*words: object) -> dict[str, Any]:
    ran = headrace(*words, "--json")
    assert ran.status == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def check_times(measures: dict[str, Any], *, num_rows: int, num_tokens: int) -> None:
    """Holds what is true of any measurement: numbers of values, and the order in which things happen."""
    counts = {name: found["count"] for name, found in measures.items() if isinstance(found, dict)}
    assert counts == {
        "run_seconds": 2, "generated_tokens_per_second": 2, "total_tokens_per_second": 2, "requests_per_second": 2,
        "ttft_seconds": num_rows, "tpot_seconds": num_rows, "inter_token_seconds": num_rows * (num_tokens - 1),
        "end_to_end_seconds": num_rows,
    }  # fmt: skip
    for name in ("ttft_seconds", "inter_token_seconds", "end_to_end_seconds"):
        found = measures[name]
        assert 0 < found["p50"] <= found["p95"] <= found["p99"]
    assert measures["ttft_seconds"]["mean"] < measures["end_to_end_seconds"]["mean"]
    further = measures["tpot_seconds"]["mean"] * (num_tokens - 1)
    total = measures["ttft_seconds"]["mean"] + further
    assert total == pytest.approx(measures["end_to_end_seconds"]["mean"])
    assert measures["inter_token_seconds"]["mean"] == pytest.approx(measures["tpot_seconds"]["mean"])


def test_throughput_is_measured_on_the_demo_model(demo_model: str) -> None:
    found = found_by("bench", "throughput", "--model", demo_model, "--num-rows", "6", *SMALL, "--dtype", "float32")
    (point,) = found["points"]
    assert point["workload"] == {"prompt_tokens": 24, "max_tokens": 5, "num_rows": 6, "seed": 0}
    check_times(point["measures"], num_rows=12, num_tokens=5)
    rates = point["measures"]
    ratio = rates["total_tokens_per_second"]["mean"] / rates["generated_tokens_per_second"]["mean"]
    assert ratio == pytest.approx(29 / 5)
    assert rates["requests_per_second"]["mean"] == pytest.approx(rates["generated_tokens_per_second"]["mean"] / 5)
    assert rates["most_rows_at_once"] == 6
    assert point["utilization"]["mbu"] > 0 and point["utilization"]["mfu"] > 0
    assert found["peak_memory_bytes"] > 50 * 2**20
    assert (found["subject"]["model"], found["subject"]["dtype"]) == ("demo", "float32")


def test_throughput_says_how_it_goes_and_shows_tables(demo_model: str) -> None:
    ran = headrace("bench", "throughput", "--model", demo_model, "--num-rows", "3", *SMALL)
    assert ran.status == 0, ran.stderr
    printed = ran.stdout.decode()
    for text in ("generated tokens/s", "requests/s", "MBU, decoding", "MFU", "peak memory", "TTFT", "P99"):
        assert text in printed
    assert "warm-up 1 of 1: " in ran.stderr and "run 2 of 2: " in ran.stderr
    quiet = headrace("bench", "throughput", "--model", demo_model, "--num-rows", "3", *SMALL, "--quiet")
    assert quiet.stderr == ""


def test_the_rows_of_a_batch_run_together(stories: Path) -> None:
    found = found_by("bench", "latency", "--model", stories, "--batch-size", "4", *SMALL)
    (point,) = found["points"]
    check_times(point["measures"], num_rows=8, num_tokens=5)
    assert point["measures"]["most_rows_at_once"] == 4


def test_a_model_that_is_streamed_is_measured_too(stories: Path, tmp_path: Path) -> None:
    found = found_by(
        "bench", "latency", "--model", stories, "--batch-size", "2", *SMALL, "--percent", 0, 0, 100, 0, 100, 0,
        "--disk", tmp_path,
    )  # fmt: skip
    assert "read in every sweep" in found["subject"]["description"]
    check_times(found["points"][0]["measures"], num_rows=4, num_tokens=5)


def test_a_model_without_tokenizer_and_weights_is_measured(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    found = found_by("bench", "latency", "--model", tmp_path, "--load-format", "dummy", *SMALL)
    check_times(found["points"][0]["measures"], num_rows=2, num_tokens=5)


def test_a_curve_is_written_point_by_point(stories: Path, tmp_path: Path) -> None:
    ran = headrace("bench", "curve", "--model", stories, "--batch-sizes", 4, 1, 2, *SMALL, "-o", tmp_path / "curve.csv")
    assert ran.status == 0, ran.stderr
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    assert [row["batch_size"] for row in rows] == ["1", "2", "4"]
    assert all(float(row["generated_tokens_per_second"]) > 0 for row in rows)
    assert "rows at a time" in ran.stdout.decode()
    assert f"the curve is in {tmp_path / 'curve.csv'}" in ran.stderr
    found = found_by("bench", "curve", "--model", stories, "--batch-sizes", 2, *SMALL, "-o", tmp_path / "curve.json")
    assert json.loads((tmp_path / "curve.json").read_text()) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench", "throughput", "--prompt-tokens", "600"), "need a context of 632 tokens; it holds 512 here"),
        (("bench", "latency", "--batch-size", "4", "--max-num-seqs", "2"), "--batch-size asks for 4 rows at a time"),
        (("bench", "curve", "-o", "curve.pdf"), "expected a name that ends with .png, .csv, .json"),
        (("eval", "perplexity", "--text", "no-such-file"), "--text no-such-file cannot be read: No such file"),
    ],
)
def test_a_mistake_is_said_before_anything_is_measured(stories: Path, words: tuple[str, ...], message: str) -> None:
    ran = headrace(*words, "--model", stories)
    assert (ran.status, ran.stdout) == (2, b"")
    assert message in ran.stderr and "Traceback" not in ran.stderr
    assert "warm-up" not in ran.stderr


def test_perplexity_is_shown_and_is_the_same_as_json(stories: Path, shared_data: Path, tmp_path: Path) -> None:
    text = (shared_data / "text" / "tinystories-val" / "tinystories_val.txt").read_bytes()[:5_000]
    (tmp_path / "text.txt").write_bytes(text)
    words = ("eval", "perplexity", "--model", stories, "--context", 256, "--stride", 128, "--dtype", "float32")
    found = found_by(*words, "--text", tmp_path / "text.txt")
    assert (found["num_bytes"], found["context"], found["stride"]) == (5_000, 256, 128)
    assert found["num_scored_tokens"] == found["num_tokens"] - 1
    assert 3 < found["perplexity"] < 6
    assert (found["dtype"], found["device"]) == ("float32", "cpu")
    piped = headrace(*words, "--text", "-", stdin=text)
    assert piped.status == 0, piped.stderr
    assert f"{found['perplexity']:.4f}" in piped.stdout.decode()
    assert f"{found['num_windows']} of {found['num_windows']} windows" in piped.stderr


def test_a_text_that_is_not_utf8_is_refused(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"caf\xe9")
    ran = headrace("eval", "perplexity", "--model", stories, "--text", tmp_path / "text.txt")
    assert ran.status == 2 and "is not UTF-8 at byte 4" in ran.stderr
