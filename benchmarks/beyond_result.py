"""From single runs to what is said about them: medians, and ratios of what was measured side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks.processes import Figures

Runs = list[Figures]
UNCAPPED = "headrace without the cap"
_MEDIANS = ("generated_tokens_per_second", "time_to_limit", "time_to_limit_of_sweeps", "streaming_to_plain_reader")


def summary(measured: Mapping[str, Runs]) -> Figures:
    """Returns `systems` with all runs and their medians, and `ratios`.

    Every ratio says how much better Headrace is, or how far it is from something: `time_to_limit` 1.0 is the limit.
    """
    systems = {name: _system(runs) for name, runs in measured.items()}
    headrace = systems["headrace"]
    rates = {name: figures.get("generated_tokens_per_second") for name, figures in systems.items()}
    own, ratios = rates["headrace"], {}
    peers = {name: rate for name, rate in rates.items() if rate and not name.startswith("headrace")}
    if own:
        ratios = {name: headrace[name] for name in _MEDIANS[1:] if name in headrace}
        for kind in ("accelerate", "llama.cpp"):
            best = max((name for name in peers if name.startswith(kind)), key=lambda name: peers[name], default=None)
            if best is not None:
                ratios |= {
                    f"{name.removeprefix('headrace').strip()} rate_to_best_{kind}".strip(): rate / peers[best]
                    for name, rate in rates.items()
                    if rate and name.startswith("headrace") and name != UNCAPPED
                }
                ratios[f"best_{kind}"] = best
        if rates.get(UNCAPPED):
            ratios["rate_without_cap_to_with"] = rates[UNCAPPED] / own
    return {"systems": systems, "ratios": ratios}


def _system(runs: Runs) -> Figures:
    """Returns all runs of a system, and the medians and the highest peak of those that did not fail."""
    good = [run for run in runs if "failed" not in run]
    figures: Figures = {}
    for name in _MEDIANS:
        values = [run[name] for run in good if run.get(name) is not None]
        if values:
            figures[name] = statistics.median(values)
    if good:
        figures["peak_bytes"] = max(run["peak_bytes"] for run in good)
    return {**figures, "runs": runs}
