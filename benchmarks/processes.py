"""Systems in processes of their own: a request goes in as JSON, what was measured comes back as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_IO = Path("/proc/self/io")
_LAST_CHARACTERS = 400

Figures = dict[str, Any]
"""What a process measured, or `{"failed": why}`."""


def measure_in_process(
    module: str,
    request: Figures,
    *,
    join: Callable[[], None] | None = None,
    beside: Callable[[int], AbstractContextManager[None]] = nullcontext,
    python: str = sys.executable,
    variables: Mapping[str, str] | None = None,
    limit_seconds: float | None = None,
) -> Figures:
    """Runs `python -m module` with `request` on its standard input, and returns the last object that it prints.

    Args:
        join: called in the new process before it starts.
        beside: given the new process's number, a context in which it runs.
        python: the interpreter, where a system lives in an environment of its own.
        variables: of the new process's environment, beside this one's.
        limit_seconds: a process that takes longer is ended.
    """
    with (
        subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(variables or {})},
            preexec_fn=join,
        ) as process,
        beside(process.pid),
    ):
        try:
            said, complained = process.communicate(json.dumps(request), limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"failed": f"not finished after {limit_seconds:g} s"}
    if process.returncode < 0:
        out_of_memory = " (out of memory)" if process.returncode == -signal.SIGKILL else ""
        last_words = complained.strip()[-_LAST_CHARACTERS:]
        return {"failed": f"ended by signal {-process.returncode}{out_of_memory} {last_words}".strip()}
    if process.returncode:
        return {"failed": complained.strip()[-_LAST_CHARACTERS:]}
    figures: Figures = json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{")))
    return figures


def serve(measure: Callable[[Figures], Figures]) -> None:
    """The other end of `measure_in_process`."""
    print(json.dumps(measure(json.load(sys.stdin))), flush=True)


@dataclass(frozen=True, slots=True)
class StorageTraffic:
    """What this process has read from and written to disks so far, as the kernel counts it; None where it does not."""

    read_bytes: int | None
    written_bytes: int | None

    @classmethod
    def now(cls) -> StorageTraffic:
        try:
            lines = dict(line.split(": ") for line in _IO.read_text().splitlines())
        except OSError:
            return cls(None, None)
        return cls(int(lines["read_bytes"]), int(lines["write_bytes"]))

    def since(self) -> Figures:
        """Returns what came since, as figures of a result."""
        now = StorageTraffic.now()
        return {
            "storage_read_bytes": _difference(now.read_bytes, self.read_bytes),
            "storage_written_bytes": _difference(now.written_bytes, self.written_bytes),
        }


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before
