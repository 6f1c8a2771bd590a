"""Draws a curve, by matplotlib; the one file that imports it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec

from headrace.errors import OptionError


def require_matplotlib() -> None:
    """Raises OptionError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise OptionError(
            "a picture is drawn by matplotlib, which is not installed: pip install 'headrace[plot]'; "
            "or write the numbers, to a name that ends with .csv or .json"
        )


def draw_curve(*, rates: Sequence[float], latencies: Sequence[float], names: Sequence[str], title: str) -> bytes:
    """Returns latency in seconds against generated tokens per second as a PNG, each point with its name.

    Raises:
        OptionError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, latencies, marker="o")
    for rate, latency, name in zip(rates, latencies, names, strict=True):
        axes.annotate(name, (rate, latency), textcoords="offset points", xytext=(6, 6))
    axes.set_xlabel("generated tokens per second")
    axes.set_ylabel("seconds from a row's arrival to its last token, median")
    axes.margins(0.1)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize="medium")
    axes.grid(visible=True, alpha=0.3)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150)
    return target.getvalue()
