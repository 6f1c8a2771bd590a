"""Which library is loaded, what building it says where it cannot be built, and what the wheel's hook makes of that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace.attention.grouped import GroupedAttention
from headrace.attention.paged import PagedAttention, best_attention
from headrace.kernels import build as building
from headrace.kernels import library as loading
from headrace.kernels.build import INSTRUCTION_SETS, BuildError, build, library_file
from headrace.kernels.library import CHOICE, instruction_set, library, usable

SOURCES = Path(building.__file__).parent


@pytest.fixture(autouse=True)
def _forget() -> None:
    library.cache_clear()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, without libraries."""
    for name in (*building.SOURCES, *building.HEADERS, "build.py"):
        shutil.copy(SOURCES / name, tmp_path)
    monkeypatch.setattr(building, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def emptied(elsewhere: Path) -> Path:
    """The same with nothing in the sources, which compiles at once."""
    for name in building.SOURCES:
        (elsewhere / name).write_text("")
    return elsewhere


@pytest.mark.skipif(not usable(), reason="no library is built")
def test_the_best_usable_library_is_taken_and_a_variable_names_another_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    assert instruction_set() == usable()[0]
    assert isinstance(best_attention(), PagedAttention)
    for name in usable():
        monkeypatch.setenv(CHOICE, name)
        assert instruction_set() == name
    monkeypatch.setenv(CHOICE, "none")
    library.cache_clear()
    assert instruction_set() is None
    assert isinstance(best_attention(), GroupedAttention)


def test_a_processor_without_avx2_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert usable() == []


def test_sources_that_changed_are_another_library(elsewhere: Path) -> None:
    before = library_file("avx2")
    (elsewhere / "attention.cpp").write_text("int other;\n")
    assert library_file("avx2") != before


@pytest.mark.skipif(not usable(), reason="no compiler")
def test_what_older_sources_gave_is_removed(emptied: Path) -> None:
    old = emptied / "headrace_avx2_00000000.so"
    old.touch()
    assert build() == [library_file(name) for name in INSTRUCTION_SETS]
    assert not old.exists()


def test_without_a_compiler_the_error_says_what_to_install(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match=r"no C\+\+ compiler .*apt install"):
        build()


@pytest.mark.skipif(not usable(), reason="no compiler")
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(emptied: Path) -> None:
    (emptied / "attention.cpp").write_text("this is not C++\n")
    with pytest.raises(BuildError, match="this is not C"):
        build()
    assert not list(emptied.glob("headrace_*"))


def test_another_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.platform, "machine", lambda: "riscv64")
    with pytest.raises(BuildError, match="riscv64"):
        build()
