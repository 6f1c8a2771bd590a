"""`headrace inspect`: a report for people, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli.main import main
from headrace.planner import inspection
from headrace.planner.hardware import Hardware
from tests.tiny_configs import TINY_CONFIGS
from tests.tiny_models import save_tiny

RATES = Hardware(device="cpu", matrix_rate=92.4e9, memory_rate=45.67e9, memory_bytes=8 << 30)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "calibrate", lambda *_: RATES)


def lines(text: str) -> dict[str, str]:
    """The values of a report by their names."""
    return {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in text.splitlines()}


def test_the_report_says_in_aligned_lines_what_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny("llama", tmp_path)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = lines(out)
    assert found["architecture"] == "llama"
    assert found["supported"] == "yes, token for token as transformers"
    assert found["parameters"] == "105.02 K"
    assert found["weights"] == "410.2 KiB in float32 (safetensors)"
    assert found["layers"] == "3: 3 x 120.5 KiB"
    assert found["embedding, head"] == "24.2 KiB, 24.2 KiB"
    assert found["context"] == "128 tokens"
    assert found["KV cache"] == "768 B per token in float32"
    assert found["tokenizer"] == "none"
    assert found["this machine"] == "cpu: 92 GFLOP/s in float32, 45.7 GB/s, 8.0 GiB free"
    assert found["ideal prefill"].endswith("for 512 tokens")
    assert found["ideal decode"].endswith("per token of one row")
    starts = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in out.splitlines()}
    assert len(starts) == 1


def test_json_holds_every_field_in_bytes_and_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIGS["qwen3_next"]))
    assert main(["inspect", str(tmp_path), "--json", "--dtype", "bfloat16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["architecture"], report["dtype"], report["weights"]) == ("qwen3_next", "bfloat16", "none")
    assert report["unsupported"] is None
    assert report["state_bytes_per_row"] > 0
    assert report["hardware"]["matrix_rate"] == RATES.matrix_rate
    assert sum(layer["count"] for layer in report["layers"]) == report["num_layers"] == 3
    assert report["decode_seconds"] > 0


def test_state_is_said_where_there_is_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIGS["mamba2"]))
    assert main(["inspect", str(tmp_path)]) == 0
    found = lines(capsys.readouterr().out)
    assert found["KV cache"] == "0 B per token, state 12.5 KiB per row"
    assert "context" not in found
    assert found["weights"].endswith("(configuration only)")


def test_experts_are_counted_as_used_and_in_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIGS["mixtral"]))
    assert main(["inspect", str(tmp_path)]) == 0
    assert lines(capsys.readouterr().out)["parameters"].endswith("used per token")


def test_a_model_that_is_refused_is_reported_with_the_reason_and_status_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "openai-gpt"}')
    assert main(["inspect", str(tmp_path)]) == 0
    found = lines(capsys.readouterr().out)
    assert found["supported"].startswith("no: architecture 'openai-gpt' is refused: it generates without a cache")
    assert found["parameters"].startswith("116.5")
    assert not {"KV cache", "ideal prefill", "ideal decode"} & found.keys()


def test_a_folder_that_is_no_model_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("headrace: ") and err.count("\n") == 1


def test_kv_in_codes_is_told_in_their_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIGS["llama"]))
    assert main(["inspect", str(tmp_path), "--kv-cache-dtype", "int8"]) == 0
    assert lines(capsys.readouterr().out)["KV cache"] == f"{3 * 2 * 2 * (16 + 4)} B per token in int8"
