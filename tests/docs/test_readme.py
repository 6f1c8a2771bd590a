"""The Python in the README runs as it stands there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.docs.pages import README, ROOT, Block, blocks, pages

# A block that names this model is for reading; it is compiled, not run.
PLACEHOLDER = "path-or-hub-name"


def python_blocks() -> list[Block]:
    return [block for block in blocks(README) if block.language == "python"]


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.place)
def test_python_in_the_readme_runs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(block.text, block.place, "exec")
    if PLACEHOLDER in block.text:
        return
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)


def test_files_that_pages_link_to_exist() -> None:
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not missing, "\n".join(missing)
