"""How far the default schedule is from the best that is found under the same budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.beyond_bench import Bench, Options
from benchmarks.memory_cap import MemoryCap
from benchmarks.processes import Figures

_BATCHED_TOKENS = (256, 512, 1024, 2048, 4096)
_MICRO_BATCHES = (2, 4)
_SHARES_OF_ROWS = (1 / 4, 1 / 2, 3 / 4, 1)


def alternatives(bench: Bench) -> dict[str, list[dict[str, int]]]:
    """Returns what is tried beside the defaults: one option at a time, several values of each."""
    rows = bench.default_rows_at_a_time
    numbers = sorted({max(1, round(share * rows)) for share in _SHARES_OF_ROWS})
    return {
        "max_num_seqs": [{"max_num_seqs": number} for number in numbers],
        "max_num_batched_tokens": [{"max_num_batched_tokens": number} for number in _BATCHED_TOKENS],
        "num_micro_batches": [{"num_micro_batches": number} for number in _MICRO_BATCHES],
        "max_model_len": [{"max_model_len": bench.case.prompt_tokens + bench.case.new_tokens}],
    }


def search(bench: Bench, cap: MemoryCap, *, tell: Callable[[str], None]) -> Figures:
    """Tries every alternative, then all those that were better together; the defaults before and after.

    One run each, so that a difference of a few percent is within what runs differ by: `default_runs` show how much.
    """
    tried: list[Figures] = []

    def measure(options: Options) -> float:
        run = bench.headrace(options, cap)
        rate = float(run.get("generated_tokens_per_second", 0.0))
        kept = ("failed", "generated_tokens_per_second", "sweeps", "most_rows_in_a_sweep", "bytes_per_sweep")
        tried.append({"options": dict(options), **{name: run[name] for name in kept if name in run}})
        tell(f"search: {options or 'defaults'}: {run.get('failed') or f'{rate:.3f} tokens/s'}")
        return rate

    first = measure({})
    better: dict[str, int] = {}
    for choices in alternatives(bench).values():
        rates = [measure(options) for options in choices]
        if max(rates) > first:
            better |= choices[rates.index(max(rates))]
    if len(better) > 1:
        measure(better)
    last = measure({})
    return _figures(tried, default=max(first, last))


def _figures(tried: list[Figures], default: float) -> Figures:
    best: Mapping[str, float] = max(tried, key=lambda run: run.get("generated_tokens_per_second", 0.0))
    rate = best.get("generated_tokens_per_second", 0.0)
    return {
        "default_runs": [run.get("generated_tokens_per_second") for run in tried if not run["options"]],
        "best_options": best["options"],
        "best_generated_tokens_per_second": rate,
        "best_to_default": rate / default if default else None,
        "tried": tried,
    }
