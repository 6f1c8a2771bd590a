"""How a benchmark says what it finds: progress to standard error, the result as JSON to standard output and a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path


def say(message: str) -> None:
    """Tells whoever waits how it goes."""
    print(message, file=sys.stderr, flush=True)


def keep(result: Mapping[str, object], output: Path | None) -> None:
    """Writes the result, or what there is of it, to the file of `--output`, if there is one."""
    if output:
        output.write_text(json.dumps(result, indent=2) + "\n")


def give(result: Mapping[str, object], output: Path | None) -> None:
    """Ends a run with its result."""
    print(json.dumps(result, indent=2))
    keep(result, output)
