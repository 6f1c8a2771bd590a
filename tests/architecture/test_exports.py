"""What `import headrace` gives, and how quickly."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import headrace
from tests.architecture.rooms import PACKAGE


def names_imported_for_types() -> set[str]:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_exports_are_sorted_and_complete() -> None:
    # ruff's RUF022 sorts capitals first, then classes, then the rest; here it is enough that nobody adds at the end.
    assert headrace.__all__ == sorted(
        headrace.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert set(headrace.__all__) == names_imported_for_types() | {"__version__"}
    assert dir(headrace) == sorted(headrace.__all__)


@pytest.mark.parametrize("name", headrace.__all__)
def test_an_exported_name_can_be_used(name: str) -> None:
    assert getattr(headrace, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = headrace.nothing


def test_importing_the_package_imports_next_to_nothing() -> None:
    program = "import sys, headrace; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    subprocess.run([sys.executable, "-c", program], check=True)
