"""The examples run on the demo model and print something useful."""

from __future__ import annotations

import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

EXAMPLES = ROOT / "examples"
Run = Callable[..., str]


@pytest.fixture
def run_example(demo_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example with arguments and lines of input, in this process, and returns what it printed."""

    def run(name: str, *arguments: str, stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_here() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert not [file.name for file in EXAMPLES.glob("*.py") if f'"{file.name}"' not in tested]


def test_batch_prints_one_json_object_per_note(run_example: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("two loaves of rye bread for Ann Miller on friday\nhaircut for Omar, 9:30 on 12 March\n")
    answers = [json.loads(line) for line in run_example("batch.py", str(notes)).splitlines()]
    assert [answer["type"] for answer in answers] == ["order", "appointment"]


def test_batch_has_notes_of_its_own(run_example: Run) -> None:
    assert len(run_example("batch.py").splitlines()) == 3


def test_stream_prints_the_answer(run_example: Run) -> None:
    assert json.loads(run_example("stream.py"))["type"] == "order"


def test_chat_answers_every_line_until_an_empty_one(run_example: Run) -> None:
    printed = run_example("chat.py", stdin="two coffees for Ann Miller\n\nnot read\n")
    assert printed.count("> ") == 2
    assert "order" in printed


def test_transformers_spelling_prints_one_answer_per_prompt(run_example: Run) -> None:
    answers = [json.loads(line) for line in run_example("transformers_spelling.py").splitlines()]
    assert [answer["type"] for answer in answers] == ["order", "appointment"]


def test_wrap_model_prints_one_answer_per_note(run_example: Run) -> None:
    answers = [json.loads(line) for line in run_example("wrap_model.py").splitlines()]
    assert [answer["type"] for answer in answers] == ["order", "appointment"]
