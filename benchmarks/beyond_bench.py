"""One model under one budget, and how each system is run on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.beyond_cases import Case
from benchmarks.memory_cap import MemoryCap
from benchmarks.physical_limit import buckets, limit
from benchmarks.processes import Figures, measure_in_process
from benchmarks.weight_files import weight_files

_HEADRACE = "benchmarks.systems.headrace_streamed"
_ACCELERATE = "benchmarks.systems.accelerate_offload"
_LLAMA_CPP = "benchmarks.systems.llama_cpp_mmap"
_RATES = "benchmarks.machine_rates"
_TOKENS = (32, 64, 128, 256, 512, 1024)
"""Of micro-batches whose rate is measured before a run, too, which has not shown its own yet."""


Options = Mapping[str, int | str]
"""Arguments of `LLM`."""


class Bench:
    """Runs systems on a model, each time in a new process.

    Attributes:
        memory_bytes: the budget; `rows`: how many Headrace answers.
    """

    def __init__(
        self, *, case: Case, model: Path, dtype: str, memory_bytes: int | None, rows: int | None, work: Path
    ) -> None:
        """Finds the least budget where none is given, and how many rows run at a time where `rows` is None.

        Raises:
            SystemExit: Headrace does not start with this budget.
        """
        self.case = case
        self._model, self._dtype, self._work = model, dtype, work
        self._request: Figures = {
            "model": str(model),
            "dtype": dtype,
            "prompt_tokens": case.prompt_tokens,
            "new_tokens": case.new_tokens,
        }
        sizes = _checked(self._run_headrace({}, memory=memory_bytes, rows=0, cap=None))
        self.memory_bytes = int(sizes["memory_bytes"])
        self.default_rows_at_a_time = int(sizes["rows_at_a_time"])
        self.rows = rows or min(2 * self.default_rows_at_a_time, case.most_rows)

    def weight_files(self) -> list[Path]:
        """Returns all files that systems read weights from."""
        return [*weight_files(self._model), *sorted(self._work.glob("offloaded/*.dat"))]

    def headrace(self, options: Options, cap: MemoryCap | None) -> Figures:
        """Lets Headrace answer all rows, with `options` of `LLM` beside the budget."""
        return self._run_headrace(options, memory=self.memory_bytes, rows=self.rows, cap=cap)

    def headrace_and_limit(self, options: Options, cap: MemoryCap | None) -> Figures:
        """The same, and how near that came to the limit of the machine at that time."""
        quantization = str(options.get("quantization", "none"))
        before = self._rates(list(_TOKENS), quantization)
        run = self.headrace(options, cap)
        if "seconds" not in run:
            return run
        after = self._rates(buckets(run), quantization)
        disk = (before["disk"] + after["disk"]) / 2
        matrix = {tokens: (rate + before["matrix"].get(tokens, rate)) / 2 for tokens, rate in after["matrix"].items()}
        bound = limit(run, self.case.shape, disk=disk, matrix=matrix)
        streamed = run["weights_read_bytes"] / run["reading_seconds"] if run["reading_seconds"] else None
        return {
            **run,
            "limit": {
                **bound.figures(),
                "disk_rate_before": before["disk"],
                "disk_rate_after": after["disk"],
                "matrix_rates_before": before["matrix"],
                "matrix_rates_after": after["matrix"],
            },
            "time_to_limit": run["seconds"] / bound.seconds,
            "time_to_limit_of_sweeps": run["seconds"] / bound.sweeps_seconds,
            "disk_rate_while_streaming": streamed,
            "streaming_to_plain_reader": None if streamed is None else streamed / disk,
        }

    def accelerate(self, batch_size: int, measured_tokens: int, cap: MemoryCap) -> Figures:
        """Lets transformers with accelerate's disk offload answer one batch."""
        request = {
            **self._request,
            "memory": self.memory_bytes,
            "batch_size": batch_size,
            "measured_tokens": measured_tokens,
            "offload_folder": str(self._work / "offloaded"),
        }
        return measure_in_process(_ACCELERATE, request, join=cap.join, beside=cap.beside)

    def llama_cpp(self, gguf: str, measured_tokens: int, cap: MemoryCap) -> Figures:
        """Lets llama.cpp answer one row."""
        request = {**self._request, "gguf": gguf, "measured_tokens": measured_tokens}
        return measure_in_process(_LLAMA_CPP, request, join=cap.join, beside=cap.beside)

    def _run_headrace(self, options: Options, *, memory: int | None, rows: int, cap: MemoryCap | None) -> Figures:
        own = {"disk": str(self._work / "copies"), **options}
        request = {**self._request, "memory": memory, "rows": rows, "options": own}
        if cap is None:
            run = measure_in_process(_HEADRACE, request)
        else:
            run = measure_in_process(_HEADRACE, request, join=cap.join, beside=cap.beside)
        return {"failed": run["refused"]} if "refused" in run else run

    def _rates(self, tokens: list[int], quantization: str) -> Figures:
        request = {
            "model": str(self._model),
            "shape": asdict(self.case.shape),
            "dtype": self._dtype,
            "tokens": tokens,
            "quantization": quantization,
        }
        return _checked(measure_in_process(_RATES, request))


def _checked(figures: Figures) -> Figures:
    if "failed" in figures:
        raise SystemExit(figures["failed"])
    return figures
