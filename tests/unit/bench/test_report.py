"""A report on a small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace import LLM
from headrace.bench.report import measure, token_ids_of
from headrace.bench.workload import Workload
from headrace.errors import HeadraceError
from tests.tiny_models import save_tiny, write_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    write_tokenizer(folder, 97)
    return folder


def test_workloads_are_measured_in_turn_on_one_model_that_is_closed_then(llama: Path) -> None:
    opened: list[LLM] = []
    notes: list[str] = []

    def open_model() -> LLM:
        opened.append(LLM(llama, memory="2GiB"))
        return opened[-1]

    workloads = [Workload(prompt_tokens=9, max_tokens=3, num_rows=num_rows) for num_rows in (1, 4)]
    report = measure(open_model, workloads, warmup=0, repeats=2, note=notes.append)
    assert [point.workload for point in report.points] == workloads
    assert [point.measures.ttft_seconds.count for point in report.points] == [2, 8]
    assert (report.subject.model, report.subject.dtype) == (str(llama), "float32")
    assert [note for note in notes if note.startswith("rows")] == ["rows at a time: 1", "rows at a time: 4"]
    (llm,) = opened
    with pytest.raises(HeadraceError, match="closed"):
        llm.generate([[5]])


def test_prompts_are_made_of_the_tokenizer_s_words(llama: Path) -> None:
    with LLM(llama, memory="2GiB") as llm:
        special = llm.tokenizer.special_token_ids
        assert set(token_ids_of(llm).tolist()) == set(range(97)) - special
