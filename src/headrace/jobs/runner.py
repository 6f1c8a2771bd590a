"""Runs a job: rows go to the model as it has room for them, answers go to the output as they finish."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from headrace.engine.interface import LanguageModel
from headrace.engine.interrupts import held_interrupts
from headrace.engine.outputs import RequestOutput
from headrace.engine.requests import GenerationRequest
from headrace.errors import RequestError, UsageError
from headrace.jobs.answers import AnswerWriter, error_line
from headrace.jobs.ordered_output import OrderedOutput
from headrace.jobs.progress import JobProgress
from headrace.jobs.report import JobReport, JobTally
from headrace.jobs.requests import generation_request
from headrace.jobs.rows import Row, RowError, RowKey

_NUM_SAMPLES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome:
    """How a job ended.

    Attributes:
        report: its figures; of the finished rows, where it was interrupted.
        interrupted: Ctrl-C ended it. Every finished row is in the output.
    """

    report: JobReport
    interrupted: bool = False


def run_job(
    *,
    model: LanguageModel,
    rows: Iterable[Row | RowError],
    output: OrderedOutput,
    progress: JobProgress,
    num_rows: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> JobOutcome:
    """Answers `rows` into `output`: one line each, in their order.

    Rows are pulled as the model has room, so a job of any length costs the memory of its running rows. Without a
    seed of its own, a row draws from the model's seed and the row's index, so it gets the same tokens in every run.

    Args:
        output: open.
        num_rows: how many rows there are, for the progress; None where that is not known.

    Raises:
        UsageError: the output cannot be written.
        SweepError: the model failed.
        In both cases every row finished before is in the output, as far as it can be written.
    """
    job = _Job(model=model, output=output, progress=progress, tally=JobTally(clock))
    progress.start(num_rows)
    interrupted = False
    try:
        with contextlib.closing(model.run(job.requests(rows))) as outputs:
            for finished in outputs:
                with held_interrupts():
                    job.finish(finished)
    except KeyboardInterrupt:
        interrupted = True
        with held_interrupts():
            output.drain()
    except BaseException:
        # The first failure is the one to tell; a second one of a full disk would hide it.
        with contextlib.suppress(UsageError, BrokenPipeError):
            output.drain()
        raise
    finally:
        progress.stop()
    return JobOutcome(report=job.tally.report(), interrupted=interrupted)


def write_errors(
    *, rows: Iterable[Row | RowError], output: OrderedOutput, clock: Callable[[], float] = time.monotonic
) -> JobOutcome:
    """Writes the output of a job in which no row can be asked; no model is needed for it.

    Raises:
        UsageError: a row can be asked after all: the input has changed since it was checked.
    """
    tally = JobTally(clock)
    for row in rows:
        if isinstance(row, Row):
            raise UsageError(f"line {row.key.line} of the input has changed since it was checked; start again")
        output.put(row.key.index, error_line(row.key, row.error))
        tally.add_failure()
    return JobOutcome(report=tally.report())


class _Job:
    """The rows that are with the model, and what is done with each when it is back."""

    def __init__(self, *, model: LanguageModel, output: OrderedOutput, progress: JobProgress, tally: JobTally) -> None:
        self.tally = tally
        self._model = model
        self._output = output
        self._progress = progress
        self._answers = AnswerWriter(model_name=model.model_name, tokens=model.tokenizer)
        self._running: dict[int, Row] = {}
        self._num_samples = 0
        self._noted: set[str] = set()

    def requests(self, rows: Iterable[Row | RowError]) -> Iterator[GenerationRequest]:
        """Yields what the model shall do; a row that cannot be asked gets its line here."""
        for row in rows:
            if isinstance(row, RowError):
                self._fail(row.key, row.error)
                continue
            try:
                request = generation_request(row, self._model)
            except RequestError as error:
                self._fail(row.key, error)
                continue
            self._note_surprises(row)
            self._running[row.key.index] = row
            yield request

    def finish(self, finished: RequestOutput) -> None:
        row = self._running.pop(finished.request_id)
        if finished.error is not None:
            self._fail(row.key, finished.error)
            return
        self._output.put(row.key.index, self._answers.answer_line(row.key, finished))
        self.tally.add_answer(finished)
        self._progress.row_done(sum(len(answer.token_ids) for answer in finished.outputs))
        if self._num_samples < _NUM_SAMPLES:
            self._num_samples += 1
            name = f"row {row.key.index + 1} ({row.key.row_id})"
            self._progress.sample(name, self._prompt_text(row), finished.outputs[0].text)

    def _fail(self, key: RowKey, error: RequestError) -> None:
        with held_interrupts():
            self._output.put(key.index, error_line(key, error))
            self.tally.add_failure()
            self._progress.row_done(0)

    def _prompt_text(self, row: Row) -> str:
        asked = row.request
        if asked.messages is not None:
            return str(asked.messages[-1].get("content", ""))
        return asked.prompt or self._model.tokenizer.decode(asked.prompt_token_ids or (), False)

    def _note_surprises(self, row: Row) -> None:
        asked, model = row.request, self._model
        if asked.prompt is not None and model.tokenizer.has_chat_template:
            self._note_once(
                "chat",
                f"warning: {model.model_name} is a chat model, and rows with 'prompt' go to it as they are "
                f"(first: line {row.key.line}); use 'messages' to have its chat template applied",
            )
        if asked.model is not None and asked.model != model.model_name:
            self._note_once(
                "model",
                f"note: rows name a model (first: {asked.model!r} on line {row.key.line}); that selects nothing, "
                f"all rows are answered by {model.model_name}",
            )

    def _note_once(self, about: str, message: str) -> None:
        if about not in self._noted:
            self._noted.add(about)
            self._progress.note(message)
