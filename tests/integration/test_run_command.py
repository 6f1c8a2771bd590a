"""`headrace run` and `headrace generate` as a user types them, on a small trained model."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import Ran, headrace, start_headrace

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


def json_lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    """A Llama of 260,000 parameters that tells stories; context 512, no chat template."""
    return shared_data / "models" / "stories260k-hf"


def batch_row(custom_id: str, **body: object) -> bytes:
    row = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    return json.dumps(row).encode()


ROWS = [
    json.dumps({"prompt": "Once upon a time", "max_tokens": 12}).encode(),
    json.dumps({"id": "ids", "prompt": [1, 403, 407, 261, 378], "temperature": 0.8, "seed": 3}).encode(),
    b'{"prompt": ',
    b"",
    json.dumps({"id": 4, "prompt": "Once upon a time", "max_token": 12}).encode(),
    json.dumps({"id": "long", "prompt": "Tom and Lily " * 500}).encode(),
    json.dumps({"id": "chat", "messages": [{"role": "user", "content": "Hi"}]}).encode(),
    batch_row("b-1", model="gpt-x", prompt="Lily saw a big", n=2, temperature=1.0, logprobs=2),
    batch_row("b-1", prompt="Again"),
    json.dumps({"id": "stop", "prompt": "Once upon a time", "stop": [" girl"], "max_tokens": 50}).encode(),
]


@dataclass(frozen=True, kw_only=True)
class MixedJob:
    """A job with good and bad rows of both shapes, and what it left."""

    ran: Ran
    answers: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def mixed_job(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> MixedJob:
    folder = tmp_path_factory.mktemp("job")
    (folder / "rows.jsonl").write_bytes(b"\n".join(ROWS))
    ran = headrace(
        "run", folder / "rows.jsonl", "-o", folder / "answers.jsonl", "--model", stories, "--max-tokens", 16,
        "--dtype", "float32", "--report", folder / "report.json",
    )  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["answers.jsonl", "report.json", "rows.jsonl"]
    return MixedJob(ran=ran, answers=folder / "answers.jsonl", report=report)


def test_every_row_has_one_line_in_order_and_a_failed_one_makes_the_status_1(mixed_job: MixedJob) -> None:
    lines = json_lines(mixed_job.answers.read_bytes())
    assert mixed_job.ran.status == 1, mixed_job.ran.stderr
    assert mixed_job.ran.stdout == b""
    assert [line["custom_id" if "custom_id" in line else "id"] for line in lines] == [
        "line-1", "ids", None, 4, "long", "chat", "b-1", "b-1", "stop",
    ]  # fmt: skip
    assert [line["error"]["code"] if line.get("error") else None for line in lines] == [
        None, None, "invalid_json", "unknown_parameter", "context_length_exceeded", "no_chat_template",
        None, "duplicate_custom_id", None,
    ]  # fmt: skip
    assert [line["error"]["line"] for line in lines if line.get("error")] == [3, 5, 6, 7, 9]


def test_the_answers_are_the_model_s(mixed_job: MixedJob) -> None:
    lines = json_lines(mixed_job.answers.read_bytes())
    assert STORY.startswith("Once upon a time" + lines[0]["text"])
    assert (lines[0]["finish_reason"], lines[0]["usage"]["completion_tokens"]) == ("length", 12)
    assert lines[1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}
    choices = lines[6]["response"]["body"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert choices[0]["text"] != choices[1]["text"]
    assert all(len(choice["logprobs"]["tokens"]) == 16 for choice in choices)
    assert (lines[8]["text"], lines[8]["finish_reason"]) == (", there was a little", "stop")


def test_the_report_adds_up(mixed_job: MixedJob) -> None:
    report = mixed_job.report
    assert list(report) == [
        "num_rows", "num_failed", "num_truncated", "prompt_tokens", "generated_tokens", "wall_seconds",
        "generated_tokens_per_second", "ttft_seconds", "tpot_seconds", "num_preemptions", "num_moved_down",
        "peak_memory_bytes",
    ]  # fmt: skip
    lines = json_lines(mixed_job.answers.read_bytes())
    usages = [line.get("usage") or line["response"]["body"].get("usage") for line in lines if not line.get("error")]
    assert (report["num_rows"], report["num_failed"], report["num_truncated"]) == (9, 5, 3)
    assert report["generated_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    assert report["prompt_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    assert 0 < report["tpot_seconds"] < report["wall_seconds"] < 300
    assert 2**27 < report["peak_memory_bytes"] < 2**33


def test_stderr_tells_what_a_person_wants_to_know(mixed_job: MixedJob) -> None:
    text = mixed_job.ran.stderr
    for part in (
        "3 of 9 rows cannot be asked",
        "line 3: not JSON",
        "sampling: temperature 0 (greedy), max_tokens 16",
        "rows name a model (first: 'gpt-x' on line 8)",
        "row 1 (line-1)",
        "generated tokens/s",
        "5 of 9 rows failed",
    ):
        assert part in text, text
    assert text.count("  answers  ") == 3
    assert "Traceback" not in text


def without_logprobs(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without the numbers whose last digits depend on which rows ran together."""
    for line in lines:
        for choice in (line.get("response") or {"body": {}})["body"].get("choices", ()):
            choice["logprobs"] = None
    return lines


def test_stdin_to_stdout_gives_the_same_answers_with_another_window(mixed_job: MixedJob, stories: Path) -> None:
    ran = headrace(
        "run", "-", "-o", "-", "--model", stories, "--max_tokens=16", "--dtype", "float32", "--max-num-seqs", 2,
        "--quiet", stdin=b"\n".join(ROWS) + b"\n",
    )  # fmt: skip
    assert ran.status == 1
    expected = json_lines(mixed_job.answers.read_bytes())
    assert without_logprobs(json_lines(ran.stdout)) == without_logprobs(expected)
    note, failures = ran.stderr.splitlines()
    assert note.startswith("note: rows name a model")
    assert failures == "5 of 9 rows failed; their lines in stdout say why"


def test_a_job_without_failures_has_status_0_and_limit_ends_it(stories: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.write_text('{"prompt": "One day"}\n' * 50)
    ran = headrace("run", rows, "-o", tmp_path / "out", "-m", stories, "--limit", 3, "--max-tokens", 4)
    assert ran.status == 0, ran.stderr
    assert len(json_lines((tmp_path / "out").read_bytes())) == 3
    assert f"{rows}: 3 rows" in ran.stderr
    again = headrace("run", rows, "-o", tmp_path / "out", "-m", stories, "--limit", 3, "--max-tokens", 4)
    assert (again.status, again.stderr) == (
        2, f"headrace: {tmp_path}/out exists; give another file, or --overwrite to replace it\n",
    )  # fmt: skip


def test_a_wrong_model_is_one_line_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"prompt": "One day"}\n')
    (tmp_path / "out").write_text("precious")
    ran = headrace("run", tmp_path / "rows", "-o", tmp_path / "out", "--overwrite", "-m", tmp_path / "nowhere", "-q")
    assert ran.status == 2
    assert ran.stderr.startswith("headrace: ") and ran.stderr.count("\n") == 1, ran.stderr
    assert (tmp_path / "out").read_text() == "precious"


def test_rows_that_are_all_wrong_need_no_model(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"promt": "One day"}\n{\n')
    ran = headrace("run", tmp_path / "rows", "-o", tmp_path / "out", "-m", tmp_path / "nowhere")
    assert ran.status == 1
    assert [line["error"]["code"] for line in json_lines((tmp_path / "out").read_bytes())] == [
        "unknown_parameter", "invalid_json",
    ]  # fmt: skip


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_whole_finished_rows_and_say_how_many(
    ended_by: signal.Signals, stories: Path, tmp_path: Path
) -> None:
    rows, out = tmp_path / "rows", tmp_path / "out"
    rows.write_text('{"prompt": "One day", "ignore_eos": true, "max_tokens": 100}\n' * 5_000)
    job = start_headrace("run", rows, "-o", out, "-m", stories, "--max-num-seqs", 8)
    deadline = time.monotonic() + 120
    while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.05)
    job.send_signal(ended_by)
    stderr = job.communicate(timeout=60)[1].decode()
    assert job.returncode == 130, stderr
    num_rows = len(json_lines(out.read_bytes()))
    assert 0 < num_rows < 5_000
    assert f"interrupted: {num_rows} of 5,000 rows are finished and in {out}" in stderr
    assert "Traceback" not in stderr


def test_a_reader_that_goes_away_ends_the_job_quietly(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"prompt": "One day", "max_tokens": 100, "ignore_eos": true}\n' * 200)
    job = start_headrace("run", tmp_path / "rows", "-o", "-", "-m", stories, "-q", "--max-num-seqs", 4)
    assert job.stdout is not None and job.stderr is not None
    first = job.stdout.readline()
    job.stdout.close()
    stderr = job.stderr.read()
    job.stderr.close()
    assert (job.wait(timeout=60), stderr) == (1, b"")
    assert first.startswith(b'{"id": "line-1"')


def test_generate_continues_its_argument_and_stdin_alike(stories: Path) -> None:
    by_argument = headrace("generate", "-m", stories, "--max-tokens", 24, "--dtype", "float32", "Once upon a time")
    by_stdin = headrace("generate", "-m", stories, "--max-tokens", 24, "--dtype", "float32", stdin=b"Once upon a time")
    assert by_argument.status == by_stdin.status == 0, by_argument.stderr
    assert by_argument.stdout == by_stdin.stdout
    assert STORY.startswith("Once upon a time" + by_argument.stdout.decode().removesuffix("\n"))
    assert by_argument.stdout.endswith(b" in the p\n")
    assert "max_tokens 24" in by_argument.stderr and "24 tokens in" in by_argument.stderr


def test_generate_takes_the_rest_of_the_context(stories: Path) -> None:
    ran = headrace("generate", "-m", stories, "--max-model-len", 32, "--ignore-eos", "Once upon a time")
    assert ran.status == 0, ran.stderr
    assert "(the rest of the context)" in ran.stderr
    too_long = headrace("generate", "-m", stories, "--max-model-len", 4, "Once upon a time there was a girl")
    assert (too_long.status, too_long.stdout) == (2, b"")
    assert "no room" in too_long.stderr


def test_the_demo_model_answers_rows_of_messages(demo_model: str) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "please send 2 boxes of pears to Anna"}]})
    ran = headrace("run", "-", "-o", "-", "-m", demo_model, "--max-tokens", 100, stdin=row.encode())
    assert ran.status == 0, ran.stderr
    assert json_lines(ran.stdout)[0]["finish_reason"] == "stop"
