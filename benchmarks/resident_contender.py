"""A system in one precision: tried once in every way, then measured at its best in turn with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks.processes import Figures
from benchmarks.resident_bench import Batches, ResidentBench
from benchmarks.resident_result import Setting, best_settings, medians
from benchmarks.resident_systems import Precision, Variant

_LEAST_GAIN = 1.02
"""A batch that has not so many times the rate of a smaller one is the last that is tried."""


class Contender:
    """Attributes:
    tried: what each variant measured once.
    settings: the best ones, by what they are best for.
    """

    def __init__(
        self,
        name: str,
        precision: Precision,
        variants: Iterable[Variant],
        bench: ResidentBench,
        tell: Callable[[str], None],
    ) -> None:
        self.name, self.precision = name, precision
        self._bench, self._tell = bench, tell
        self._variants = {variant.name: variant for variant in variants}
        self.tried: dict[str, Figures] = {}
        self.settings: dict[str, Setting] = {}
        self._runs: dict[str, list[Figures]] = {}

    def try_all(self, batches: Batches) -> None:
        """Finds the best settings."""
        for name in self._variants:
            self.tried[name] = self._try(name, batches)
            self._tell_of(f"tried {self.name}, {self.precision}, {name}", self.tried[name])
        self.settings = best_settings(self.tried)
        self._runs = {kind: [] for kind in self.settings}

    def measure(self, batches: Callable[[list[int]], Batches]) -> None:
        """Measures the best settings once more: those of one variant in one process."""
        for name in sorted({setting.variant for setting in self.settings.values()}):
            wanted = {kind: setting.batch_size for kind, setting in self.settings.items() if setting.variant == name}
            figures = self._bench.run(self.name, self._variants[name], batches(sorted({*wanted.values()})))
            self._tell_of(f"{self.name}, {self.precision}, {name}", figures)
            by_size = {run["batch_size"]: run for run in figures.get("runs", ())}
            for kind, size in wanted.items():
                run = by_size.get(size, {"batch_size": size, "failed": figures.get("failed", "a smaller batch failed")})
                self._runs[kind].append({key: value for key, value in run.items() if key != "first_tokens"})

    def figures(self) -> Figures:
        """Returns everything, as it goes into the result."""
        trial = {name: _without_tokens(figures) for name, figures in self.tried.items()}
        return {
            **{
                kind: {
                    "variant": setting.variant,
                    "batch_size": setting.batch_size,
                    "kv_dtype": self.tried[setting.variant]["kv_dtype"],
                    **medians(self._runs[kind]),
                }
                for kind, setting in self.settings.items()
            },
            "trial": trial,
        }

    def _try(self, name: str, batches: Batches) -> Figures:
        """Leaves out the largest batch where memory ends: its process says nothing of the smaller ones, either."""
        while True:
            figures = self._bench.run(self.name, self._variants[name], batches, _LEAST_GAIN)
            if len(batches) == 1 or "out of memory" not in figures.get("failed", ""):
                return figures
            batches = {size: batches[size] for size in sorted(batches)[:-1]}

    def _tell_of(self, what: str, figures: Figures) -> None:
        runs = figures.get("runs", ())
        rates = ", ".join(
            f"{run['batch_size']}: {run.get('failed') or format(run['generated_tokens_per_second'], '.2f')}"
            for run in runs
        )
        self._tell(f"{what}: {figures.get('failed') or f'tokens/s by batch: {rates}'}")


def _without_tokens(figures: Figures) -> Figures:
    if "runs" not in figures:
        return figures
    runs = [{key: value for key, value in run.items() if key != "first_tokens"} for run in figures["runs"]]
    return {**figures, "runs": runs}
