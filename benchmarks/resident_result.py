"""From what systems measured to what is said about them: their best settings, medians, ratios, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.processes import Figures
from benchmarks.resident_systems import PRECISIONS, Precision

SINGLE, BEST = "single_stream", "best_batch"
"""What a system in a precision is measured for: the time per token of one row, and tokens per second."""

Entries = Mapping[str, Mapping[Precision, Figures]]
"""Figures by system and precision."""

_OWN = "headrace"
_MEDIANS = ("generated_tokens_per_second", "seconds", "ttft_seconds", "tpot_seconds")


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to hold the model, and how many rows are answered at a time."""

    variant: str
    batch_size: int


def best_settings(tried: Mapping[str, Figures]) -> dict[str, Setting]:
    """Returns the setting with the least time per token of a single row, and that with the most tokens per second.

    Args:
        tried: what each variant measured; none is returned for what no variant did.
    """
    runs = {
        Setting(name, run["batch_size"]): run
        for name, figures in tried.items()
        for run in figures.get("runs", ())
        if "failed" not in run
    }
    single = [setting for setting in runs if setting.batch_size == 1]
    settings = {}
    if single:
        settings[SINGLE] = min(single, key=lambda setting: runs[setting]["tpot_seconds"])
    if runs:
        settings[BEST] = max(runs, key=lambda setting: runs[setting]["generated_tokens_per_second"])
    return settings


def medians(runs: list[Figures]) -> Figures:
    """Returns the medians of the runs that did not fail, the highest peak of them, and all of them."""
    good = [run for run in runs if "failed" not in run]
    figures: Figures = {}
    if good:
        figures = {name: statistics.median(run[name] for run in good) for name in _MEDIANS}
        figures["peak_bytes"] = max(run["peak_bytes"] for run in good)
    return {**figures, "runs": runs}


def agreement(tried: Mapping[str, Figures], reference: Figures | None) -> dict[str, float | None]:
    """Returns, by variant, for what part of the rows of equal batches the first token is that of the reference."""
    known = _first_tokens(reference or {})
    shares: dict[str, float | None] = {}
    for name, figures in tried.items():
        own = _first_tokens(figures)
        pairs = [pair for size in own.keys() & known.keys() for pair in zip(own[size], known[size], strict=False)]
        shares[name] = sum(one == other for one, other in pairs) / len(pairs) if pairs else None
    return shares


def _first_tokens(figures: Figures) -> dict[int, list[int]]:
    return {run["batch_size"]: run["first_tokens"] for run in figures.get("runs", ()) if "first_tokens" in run}


def ratios(entries: Entries) -> Figures:
    """Returns by precision how Headrace compares with each peer in this precision or a higher one, and with the best.

    Rates above 1 and times below 1 are in Headrace's favour.
    """
    found: Figures = {}
    for index, precision in enumerate(PRECISIONS):
        own = entries.get(_OWN, {}).get(precision, {})
        peers = {
            f"{name}, {theirs}": entries[name][theirs]
            for name in entries
            if name != _OWN
            for theirs in PRECISIONS[: index + 1]
            if theirs in entries[name]
        }
        compared = {
            "tokens_per_second": _compared(own, peers, BEST, "generated_tokens_per_second", max),
            "tpot_of_a_single_row": _compared(own, peers, SINGLE, "tpot_seconds", min),
        }
        if any(compared.values()):
            found[precision] = {name: figures for name, figures in compared.items() if figures}
    return found


def _compared(own: Figures, peers: Mapping[str, Figures], kind: str, name: str, best: Callable[..., str]) -> Figures:
    value = own.get(kind, {}).get(name)
    theirs = {peer: entry[kind][name] for peer, entry in peers.items() if name in entry.get(kind, {})}
    if value is None or not theirs:
        return {}
    first = best(theirs, key=lambda peer: theirs[peer])
    return {
        "to_best_peer": value / theirs[first],
        "best_peer": first,
        "to_peers": {peer: value / other for peer, other in theirs.items()},
    }


def table(entries: Entries) -> Iterator[str]:
    """Yields the lines of a short table."""
    yield f"{'':28}{'one row, ms/token':>30}{'best batch, tokens/s':>36}{'KV':>10}{'GB':>7}"
    for name, by_precision in entries.items():
        for precision, entry in by_precision.items():
            if BEST not in entry:
                why = "; ".join(f"{variant}: {figures.get('failed')}" for variant, figures in entry["trial"].items())
                yield f"{name + ', ' + precision:28}{why[:120]}"
                continue
            single, best = entry.get(SINGLE, {}), entry[BEST]
            time = f"{1e3 * single['tpot_seconds']:.1f} ({single['variant']})" if "tpot_seconds" in single else ""
            rate = f"{best['generated_tokens_per_second']:.1f} ({best['batch_size']}, {best['variant']})"
            yield (
                f"{name + ', ' + precision:28}{time:>30}{rate:>36}{best['kv_dtype']:>10}{best['peak_bytes'] / 1e9:7.1f}"
            )
