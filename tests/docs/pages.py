"""Reads the documentation: its pages, their code blocks, and the commands that they show."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
# Written by scripts, so compared as a whole elsewhere, or a record of the past.
_NOT_READ = {"docs/cli.md", "docs/verified.md"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block: what its fence says it is, its text, and where it begins."""

    language: str
    text: str
    place: str


def pages() -> list[Path]:
    """Returns the README, CONTRIBUTING and every page under docs that people write."""
    found = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page.is_file() and str(page.relative_to(ROOT)) not in _NOT_READ]


def blocks(page: Path) -> Iterator[Block]:
    """Yields the fenced code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```\s*$", text, flags=re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(language=match[1].strip(), text=match[2], place=f"{page.relative_to(ROOT)}:{line}")


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields place and words of every `headrace ...` command in the blocks and the inline code of a page.

    A command ends at a pipe, a redirection or a comment. What stands for something else (`…`, `<name>`) is left out.
    """
    for block in blocks(page):
        if block.language in {"", "sh", "bash", "console", "shell"}:
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from ((block.place, words) for words in _commands_of(line))
    prose = re.sub(r"^```.*?^```\s*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`(headrace [^`\n]+)`", prose):
        yield from ((f"{page.relative_to(ROOT)}: `{code}`", words) for words in _commands_of(code))


def _commands_of(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word and set(word) <= set("|&;<>"):
            if command[:1] == ["headrace"]:
                yield [word for word in command[1:] if word not in {"…", "..."}]
            command = []
        else:
            command.append(word)


def load_script(name: str) -> ModuleType:
    """Returns a file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
