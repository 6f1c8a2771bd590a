"""A whole job on a model that echoes."""

from __future__ import annotations

import io
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import SweepError, UsageError
from headrace.jobs.ordered_output import OrderedOutput
from headrace.jobs.rows import RowReader
from headrace.jobs.runner import JobOutcome, run_job, write_errors
from headrace.sampling.parameters import SamplingParams
from headrace.testing import ByteTokenizer, EchoLLM

PLAIN = ByteTokenizer(has_chat_template=False)


class Listener:
    """A progress that remembers what it heard."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.samples: list[tuple[str, str, str]] = []
        self.num_rows: int | None = None
        self.num_done = 0
        self.num_tokens = 0
        self.stopped = False

    def note(self, message: str) -> None:
        self.notes.append(message)

    def start(self, num_rows: int | None) -> None:
        self.num_rows = num_rows

    def row_done(self, num_generated_tokens: int) -> None:
        self.num_done += 1
        self.num_tokens += num_generated_tokens

    def sample(self, name: str, prompt: str, answer: str) -> None:
        self.samples.append((name, prompt, answer))

    def stop(self) -> None:
        self.stopped = True


class Job:
    """One job in a folder of its own."""

    def __init__(self, folder: Path, rows: list[Any], **defaults: Any) -> None:
        self.path = folder / "out.jsonl"
        self.heard = Listener()
        self._data = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
        self._defaults = SamplingParams(**defaults)

    def run(self, model: EchoLLM) -> JobOutcome:
        with OrderedOutput(str(self.path), overwrite=True) as output:
            rows = RowReader(defaults=self._defaults).read(io.BytesIO(self._data))
            return run_job(model=model, rows=rows, output=output, progress=self.heard, num_rows=3)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def mixed_rows(count: int) -> list[Any]:
    draw = random.Random(5)
    return [
        {"id": index, "prompt": "x" * draw.randint(1, 60)} if draw.random() < 0.8 else b'{"prompt": '
        for index in range(count)
    ]


def test_every_row_has_one_line_in_the_order_of_the_input(tmp_path: Path) -> None:
    rows = mixed_rows(200)
    job = Job(tmp_path, rows)
    outcome = job.run(EchoLLM(max_num_seqs=16, tokenizer=PLAIN))
    assert len(job.lines) == 200
    for row, line in zip(rows, job.lines, strict=True):
        if isinstance(row, bytes):
            assert line["error"]["code"] == "invalid_json"
        else:
            assert (line["id"], line["text"]) == (row["id"], row["prompt"])
    assert not outcome.interrupted
    assert outcome.report.num_rows == job.heard.num_done == 200
    assert outcome.report.num_failed == sum(isinstance(row, bytes) for row in rows)
    assert outcome.report.generated_tokens == job.heard.num_tokens
    assert job.heard.num_rows == 3 and job.heard.stopped


@pytest.mark.parametrize("window", [1, 3, 64])
def test_the_same_job_writes_the_same_bytes_however_many_rows_run_at_once(tmp_path: Path, window: int) -> None:
    reference, job = Job(tmp_path, mixed_rows(50)), Job(tmp_path, mixed_rows(50))
    reference.run(EchoLLM(max_num_seqs=7))
    expected = reference.path.read_bytes()
    job.run(EchoLLM(max_num_seqs=window))
    assert job.path.read_bytes() == expected


def test_rows_are_read_only_as_the_model_has_room(tmp_path: Path) -> None:
    num_read = 0

    def rows() -> Any:
        nonlocal num_read
        for row in RowReader(defaults=SamplingParams()).read(io.BytesIO(b'{"prompt": "abc"}\n' * 1000)):
            num_read += 1
            yield row

    most_ahead = 0

    class Counting(Listener):
        def row_done(self, num_generated_tokens: int) -> None:
            nonlocal most_ahead
            super().row_done(num_generated_tokens)
            most_ahead = max(most_ahead, num_read - self.num_done)

    with OrderedOutput(str(tmp_path / "out")) as output:
        run_job(model=EchoLLM(max_num_seqs=8), rows=rows(), output=output, progress=Counting())
    assert num_read == 1000
    assert most_ahead <= 8


def test_max_tokens_is_1024_where_nobody_says_otherwise(tmp_path: Path) -> None:
    job = Job(tmp_path, [{"prompt": "x" * 2000}, {"prompt": "x" * 2000, "max_tokens": 5}])
    report = job.run(EchoLLM()).report
    assert [line["usage"]["completion_tokens"] for line in job.lines] == [1024, 5]
    assert [line["finish_reason"] for line in job.lines] == ["length", "length"]
    assert report.num_truncated == 2


def test_a_row_that_wants_at_least_more_gets_more(tmp_path: Path) -> None:
    job = Job(tmp_path, [{"prompt": "x" * 2000, "min_tokens": 1500}])
    job.run(EchoLLM())
    assert job.lines[0]["usage"]["completion_tokens"] == 1500


def test_options_are_for_rows_that_do_not_say(tmp_path: Path) -> None:
    job = Job(tmp_path, [{"prompt": "abcdef"}, {"prompt": "abcdef", "max_tokens": 4}], max_tokens=2)
    job.run(EchoLLM(tokenizer=PLAIN))
    assert [line["text"] for line in job.lines] == ["ab", "abcd"]


def test_a_prompt_that_fills_the_context_fails_alone(tmp_path: Path) -> None:
    job = Job(tmp_path, [{"prompt": "x" * 10}, {"prompt": "x" * 9}, {"messages": [{"role": "user", "content": "y"}]}])
    outcome = job.run(EchoLLM(max_model_len=10))
    first, second, third = job.lines
    assert first["error"] == {
        "code": "context_length_exceeded",
        "message": "prompt: 10 tokens; the context holds 10, so at most 9 leave room for an answer; shorten it",
        "param": "prompt",
        "line": 1,
    }
    assert second["text"] == "x"
    assert third["error"]["param"] == "messages"
    assert outcome.report.num_failed == 2


def test_a_prompt_without_tokens_fails_alone(tmp_path: Path) -> None:
    job = Job(tmp_path, [{"prompt": ""}, {"prompt": "a"}])
    job.run(EchoLLM())
    assert [list(line) for line in job.lines] == [["id", "error"], ["id", "text", "finish_reason", "usage"]]


def test_messages_fail_one_by_one_where_there_is_no_chat_template(tmp_path: Path) -> None:
    job = Job(tmp_path, [{"messages": [{"role": "user", "content": "y"}]}])
    job.run(EchoLLM(tokenizer=PLAIN))
    assert job.lines[0]["error"]["code"] == "no_chat_template"


def test_an_error_of_the_engine_becomes_the_row_s_line(tmp_path: Path) -> None:
    class Strict(EchoLLM):
        def _begin(self, request: Any, step: int) -> Any:
            if request.request_id == 1:
                raise RequestErrorForTest
            return super()._begin(request, step)

    from headrace.errors import RequestError

    RequestErrorForTest = RequestError("token 99 is not in the vocabulary", code="invalid_value", param="prompt")
    job = Job(tmp_path, [{"prompt": "a"}, {"prompt": [99]}, {"prompt": "c"}])
    assert job.run(Strict()).report.num_failed == 1
    assert job.lines[1]["error"]["message"] == "token 99 is not in the vocabulary"


def test_prompts_on_a_chat_model_get_one_warning_that_names_messages(tmp_path: Path) -> None:
    job = Job(tmp_path, [{"messages": [{"role": "user", "content": "y"}]}, {"prompt": "a"}, {"prompt": "b"}])
    job.run(EchoLLM())
    (warning,) = job.heard.notes
    assert warning.startswith("warning: echo is a chat model") and "line 2" in warning and "'messages'" in warning


def test_token_prompts_and_plain_models_get_no_warning(tmp_path: Path) -> None:
    chat, plain = Job(tmp_path, [{"prompt": [65]}]), Job(tmp_path, [{"prompt": "a"}])
    chat.run(EchoLLM())
    plain.run(EchoLLM(tokenizer=PLAIN))
    assert chat.heard.notes == plain.heard.notes == []


def test_a_row_that_names_another_model_is_told_once_who_answers(tmp_path: Path) -> None:
    job = Job(tmp_path, [{"prompt": [65], "model": name} for name in ("echo", "gpt-x", "gpt-y")])
    job.run(EchoLLM())
    (note,) = job.heard.notes
    assert "'gpt-x' on line 2" in note and "answered by echo" in note


def test_the_first_three_answers_are_shown(tmp_path: Path) -> None:
    rows = [{"id": n, "messages": [{"role": "user", "content": f"m{n}"}]} for n in range(6)]
    job = Job(tmp_path, rows)
    job.run(EchoLLM())
    assert job.heard.samples == [("row 1 (0)", "m0", "m0"), ("row 2 (1)", "m1", "m1"), ("row 3 (2)", "m2", "m2")]


def fail_at(step: int, fail: Callable[[], None]) -> Callable[[int], None]:
    return lambda now: fail() if now == step else None


def test_ctrl_c_leaves_every_finished_row_in_the_output(tmp_path: Path) -> None:
    # Row 0 is long: the others finish first and wait behind it.
    job = Job(tmp_path, [{"id": 0, "prompt": "x" * 50}] + [{"id": n, "prompt": "ab"} for n in range(1, 9)])
    model = EchoLLM(max_num_seqs=3, on_step=fail_at(10, lambda: signal.raise_signal(signal.SIGINT)))
    outcome = job.run(model)
    assert outcome.interrupted
    assert [line["id"] for line in job.lines] == [1, 2, 3, 4, 5, 6]
    assert outcome.report.num_rows == 6
    assert job.heard.stopped


def test_ctrl_c_while_a_row_is_written_waits_until_it_is(tmp_path: Path) -> None:
    class Impatient(Listener):
        def row_done(self, num_generated_tokens: int) -> None:
            super().row_done(num_generated_tokens)
            if self.num_done == 3:
                signal.raise_signal(signal.SIGINT)
                self.notes.append("went on")

    job = Job(tmp_path, [{"id": n, "prompt": [65]} for n in range(9)])
    job.heard = Impatient()
    outcome = job.run(EchoLLM(max_num_seqs=1))
    assert outcome.interrupted and job.heard.notes == ["went on"]
    assert [line["id"] for line in job.lines] == [0, 1, 2]


def test_a_failing_model_leaves_every_finished_row_in_the_output(tmp_path: Path) -> None:
    def fail() -> None:
        raise SweepError("the device is gone")

    job = Job(tmp_path, [{"id": 0, "prompt": "x" * 50}, {"id": 1, "prompt": "ab"}, {"id": 2, "prompt": "y" * 50}])
    with pytest.raises(SweepError, match="the device is gone"):
        job.run(EchoLLM(on_step=fail_at(20, fail)))
    assert [line["id"] for line in job.lines] == [1]
    assert job.heard.stopped


def test_errors_alone_are_written_without_a_model(tmp_path: Path) -> None:
    reader = RowReader(defaults=SamplingParams())
    with OrderedOutput(str(tmp_path / "out")) as output:
        outcome = write_errors(rows=reader.read(io.BytesIO(b"{\n{}\n")), output=output)
    assert (outcome.report.num_rows, outcome.report.num_failed) == (2, 2)
    assert len((tmp_path / "out").read_text().splitlines()) == 2


def test_an_input_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    rows = RowReader(defaults=SamplingParams()).read(io.BytesIO(b'{"prompt": "a"}'))
    with OrderedOutput(str(tmp_path / "out")) as output, pytest.raises(UsageError, match=r"line 1 .* has changed"):
        write_errors(rows=rows, output=output)
