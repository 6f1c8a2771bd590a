"""Runs the `headrace` command for tests."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from headrace.cli.main import main


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command that has ended."""

    status: int
    stdout: bytes
    stderr: str


def headrace(*words: object, stdin: bytes = b"") -> Ran:
    """Runs the command line in this process, which has imported torch already; a new one takes seconds to do so."""
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with (
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        status = main([str(word) for word in words])
    stdout.flush()
    data = stdout.buffer.getvalue()  # type: ignore[attr-defined]
    return Ran(status=status, stdout=data, stderr=stderr.getvalue())


def start_headrace(*words: object) -> subprocess.Popen[bytes]:
    """Starts the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "headrace", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
