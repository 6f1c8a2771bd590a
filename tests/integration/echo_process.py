"""A system that shows a variable of its environment, or never ends."""

from __future__ import annotations

import os
import threading

from benchmarks.processes import Figures, serve


def measure(request: Figures) -> Figures:
    if request.get("forever"):
        threading.Event().wait()
    return {"shown": os.environ.get(request["show"])}


if __name__ == "__main__":
    serve(measure)
