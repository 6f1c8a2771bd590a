"""`--sample-slow`: the same seed draws the same tests, and every file keeps at least one."""

from __future__ import annotations

from tests.conftest import sample_slow

NODES = [f"tests/{file}.py::test_{n}" for file, size in (("a", 40), ("b", 1)) for n in range(size)]


def test_the_same_seed_draws_the_same_tests() -> None:
    assert sample_slow(NODES, 7, 0.1) == sample_slow(list(reversed(NODES)), 7, 0.1)
    assert sample_slow(NODES, 7, 0.1) != sample_slow(NODES, 8, 0.1)


def test_every_file_keeps_its_part_and_at_least_one() -> None:
    chosen = sample_slow(NODES, 7, 0.1)
    assert sum(node.startswith("tests/a.py") for node in chosen) == 4
    assert "tests/b.py::test_0" in chosen


def test_what_another_file_holds_does_not_change_the_draw() -> None:
    of_a = [node for node in NODES if node.startswith("tests/a.py")]
    assert sample_slow(of_a, 7, 0.1) == {node for node in sample_slow(NODES, 7, 0.1) if node.startswith("tests/a.py")}
