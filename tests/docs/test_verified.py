"""The page that `make verify` writes says what ran, on what, and what was measured."""

from __future__ import annotations

from pathlib import Path

from tests.docs.pages import load_script

write_verified = load_script("write_verified")

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_units" name="a" time="1.5"/>
<testcase classname="tests.unit.room.test_b" name="b" time="0.5"><skipped message="none"/></testcase>
<testcase classname="tests.parity.test_c.TestClass" name="c" time="2"><failure message="not equal"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_counted_by_folder(tmp_path: Path) -> None:
    junit = tmp_path / "verify.xml"
    junit.write_text(JUNIT)
    page = write_verified.page(write_verified.read_suites(junit), {"peak memory": "2.9 GiB"})
    assert "| `tests/parity` | 0 | 0 | 1 | 2 s |" in page
    assert "| `tests/unit` | 1 | 1 | 0 | 2 s |" in page
    assert "| all | 1 | 1 | 1 | 4 s |" in page
    assert "| peak memory | 2.9 GiB |" in page


def test_accuracies_are_found_in_what_the_demo_printed() -> None:
    printed = "rows  300\naccuracy: 97.3 %\n  accuracy on new patterns: 84.0 %\n"
    assert write_verified.demo_figures(printed) == [("accuracy", "97.3 %"), ("accuracy on new patterns", "84.0 %")]
