"""Files stay small and hold no promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.rooms import PACKAGE, source_files, where

MAX_LINES = 500
PROMISE = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_source_file_is_short_and_finished(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_LINES, f"{where(file, len(lines))}: split the file; {MAX_LINES} lines are the most"
    promises = [f"{where(file, n)}: {line.strip()}" for n, line in enumerate(lines, 1) if PROMISE.search(line)]
    assert not promises, "\n".join(promises)


def test_every_room_says_what_it_is() -> None:
    silent = [file for file in source_files() if not file.read_text(encoding="utf-8").lstrip().startswith('"""')]
    assert not silent, f"files without a docstring: {[str(file.relative_to(PACKAGE)) for file in silent]}"
