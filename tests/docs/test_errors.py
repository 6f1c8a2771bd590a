"""docs/errors.md lists every error that Headrace raises, and none that it does not."""

from __future__ import annotations

import inspect
import re

from headrace import errors
from tests.docs.pages import ROOT


def error_classes() -> set[str]:
    return {name for name, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)}


def test_the_page_of_errors_lists_every_error_class() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+Error)` \|", page, flags=re.MULTILINE)) == error_classes()


def test_the_tree_in_the_module_shows_every_error_class() -> None:
    assert set(re.findall(r"\w+Error\b", errors.__doc__ or "")) == error_classes()
