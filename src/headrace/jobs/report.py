"""What a job did: counted while it runs, reported when it ends."""

from __future__ import annotations

import json
import statistics
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.engine.outputs import RequestOutput
from headrace.errors import OptionError
from headrace.storage.process_memory import peak_resident_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class JobReport:
    """The figures of a finished or interrupted job.

    Attributes:
        num_rows: rows with a line in the output.
        num_failed: those of them whose line is an error.
        num_truncated: those with an answer that ended at `max_tokens` or at the end of the context.
        prompt_tokens: of the rows that were answered.
        generated_tokens: over all answers.
        wall_seconds: from the first row read to the last line written; loading the model is not in it.
        ttft_seconds: median over the answered rows of the time from entering the engine to the first token.
        tpot_seconds: median over the answered rows of the time per further token.
        num_preemptions: how often an answered row had to give its KV up to older rows.
        num_moved_down: how often that KV was kept below then; the other times it was computed again.
        peak_memory_bytes: the most memory the process ever held.
    """

    num_rows: int
    num_failed: int
    num_truncated: int
    prompt_tokens: int
    generated_tokens: int
    wall_seconds: float
    ttft_seconds: float | None
    tpot_seconds: float | None
    num_preemptions: int
    num_moved_down: int
    peak_memory_bytes: int

    @property
    def generated_tokens_per_second(self) -> float:
        return self.generated_tokens / self.wall_seconds if self.wall_seconds > 0 else 0.0

    def to_json(self) -> str:
        """Returns the report as a JSON object with one key per figure, named as here."""
        figures = {
            "num_rows": self.num_rows,
            "num_failed": self.num_failed,
            "num_truncated": self.num_truncated,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "wall_seconds": self.wall_seconds,
            "generated_tokens_per_second": self.generated_tokens_per_second,
            "ttft_seconds": self.ttft_seconds,
            "tpot_seconds": self.tpot_seconds,
            "num_preemptions": self.num_preemptions,
            "num_moved_down": self.num_moved_down,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        return json.dumps(figures, indent=2) + "\n"


class JobTally:
    """Counts rows as they end. Keeps two numbers per answered row, for the medians.

    Args:
        clock: seconds on a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._num_answered = 0
        self._num_failed = 0
        self._num_truncated = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._num_preemptions = 0
        self._num_moved_down = 0
        self._ttft = array("d")
        self._tpot = array("d")

    @property
    def num_rows(self) -> int:
        return self._num_answered + self._num_failed

    def add_failure(self) -> None:
        self._num_failed += 1

    def add_answer(self, output: RequestOutput) -> None:
        self._num_answered += 1
        self._prompt_tokens += len(output.prompt_token_ids)
        self._generated_tokens += sum(len(answer.token_ids) for answer in output.outputs)
        self._num_truncated += any(answer.finish_reason == "length" for answer in output.outputs)
        if output.metrics is not None:
            self._num_preemptions += output.metrics.num_preemptions
            self._num_moved_down += output.metrics.num_moved_down
            self._ttft.append(output.metrics.ttft_seconds)
            if output.metrics.tpot_seconds is not None:
                self._tpot.append(output.metrics.tpot_seconds)

    def report(self) -> JobReport:
        """Returns the figures up to now."""
        return JobReport(
            num_rows=self.num_rows,
            num_failed=self._num_failed,
            num_truncated=self._num_truncated,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            wall_seconds=self._clock() - self._start,
            ttft_seconds=statistics.median(self._ttft) if self._ttft else None,
            tpot_seconds=statistics.median(self._tpot) if self._tpot else None,
            num_preemptions=self._num_preemptions,
            num_moved_down=self._num_moved_down,
            peak_memory_bytes=peak_resident_bytes(),
        )


class ReportFile:
    """The file that `--report` names.

    Raises:
        OptionError: it cannot be written; said before the job starts.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise OptionError(f"cannot write the report {path}: expected a file in a folder that exists")

    def write(self, report: JobReport) -> None:
        """Replaces the file.

        Raises:
            OptionError: the system refuses.
        """
        try:
            self._path.write_text(report.to_json(), encoding="utf-8")
        except OSError as error:
            raise OptionError(f"cannot write the report {self._path}: {error.strerror}") from error
