"""The rooms of src/headrace from the top down, and how their imports are read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "headrace"

# A room imports only rooms that stand after it. A new room or top-level module gets its place here.
ROOMS = (
    "testing",
    "__main__",
    "cli",
    "bench",
    "server",
    "jobs",
    "compat",
    "engine",
    "executor",
    "scheduler",
    "planner",
    "models",
    "checkpoint",
    "kv_cache",
    "sampling",
    "storage",
    "attention",
    "compression",
    "schedule",
    "kernels",
    "demo",
    "trace",
    "units",
    "errors",
)

# The package's own __init__ only names what it exports; it is everyone's to import for `__version__`.
TOP = "__init__"


def source_files() -> list[Path]:
    """Returns every Python file of the package, sorted."""
    return sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    """Returns the dotted name of a file of the package: `headrace.kv_cache.blocks`."""
    parts = list(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def room_of(module: str) -> str:
    """Returns the room of a dotted name: `kv_cache` of `headrace.kv_cache.blocks`, `__init__` of `headrace`."""
    return module.split(".")[1] if "." in module else TOP


def imported_modules(file: Path) -> Iterator[tuple[int, str]]:
    """Yields line and dotted name of all that a file imports: in functions, for types, and by `import_module("...")`.

    `from headrace import x` counts as `headrace.x`, because x may be a module.
    """
    package = module_name(file).split(".")
    if file.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = (
                    ".".join([*package[: len(package) - level + 1], *([module] if module else [])]) if level else module
                )
                if base == "headrace":
                    yield from ((node.lineno, f"headrace.{alias.name}") for alias in names)
                else:
                    yield node.lineno, base or ""
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def where(file: Path, line: int) -> str:
    """Returns `src/headrace/units.py:7`."""
    return f"{file.relative_to(ROOT)}:{line}"
