"""What the operating system says about memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.storage import process_memory
from headrace.storage.process_memory import (
    available_bytes,
    container_limit_bytes,
    peak_growth_bytes,
    peak_resident_bytes,
    release_freed_memory,
    resident_bytes,
)
from headrace.units import MIB


def touched(num_bytes: int) -> bytearray:
    return bytearray(num_bytes)


def test_resident_memory_counts_what_is_touched_and_not_what_was_given_back() -> None:
    before = resident_bytes()
    held = touched(64 * MIB)
    assert 60 * MIB < resident_bytes() - before < 80 * MIB
    del held
    release_freed_memory()
    assert resident_bytes() - before < 10 * MIB


def test_resident_memory_counts_children() -> None:
    program = "import sys; held = bytearray(64 << 20); print(flush=True); sys.stdin.read()"
    before = resident_bytes()
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        assert resident_bytes() - before > 60 * MIB
        child.stdin.close()
    assert resident_bytes() - before < 30 * MIB


def test_the_peak_outlives_what_caused_it() -> None:
    held = touched(64 * MIB)
    with_it = resident_bytes()
    del held
    assert peak_resident_bytes() > with_it - 8 * MIB


def test_the_growth_of_a_run_is_its_highest_point_and_not_its_end() -> None:
    # In a process that has freed nothing before: what an allocator kept of that would count as grown.
    program = """
from headrace.storage.process_memory import peak_growth_bytes
def run():
    for size in (10, 96, 20):
        bytearray(size << 20)
print(peak_growth_bytes(run))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 90 * MIB < int(result.stdout) < 110 * MIB


def test_an_earlier_peak_neither_hides_a_growth_nor_is_forgotten() -> None:
    touched(256 * MIB)
    earlier = peak_resident_bytes()
    assert 60 * MIB < peak_growth_bytes(lambda: touched(64 * MIB)) < 80 * MIB
    assert peak_resident_bytes() >= earlier


def test_where_the_peak_counter_cannot_be_reset_a_thread_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "_CLEAR_REFS", Path("/nowhere/clear_refs"))

    def run() -> None:
        held = touched(96 * MIB)
        for _ in range(50):
            held.count(b"x")

    assert 80 * MIB < peak_growth_bytes(run) < 110 * MIB
    kept: list[bytearray] = []
    assert peak_growth_bytes(lambda: kept.append(touched(64 * MIB))) > 60 * MIB


def test_a_run_that_fails_raises_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        peak_growth_bytes(lambda: 1 // 0)
    monkeypatch.setattr(process_memory, "_CLEAR_REFS", Path("/nowhere/clear_refs"))
    with pytest.raises(ZeroDivisionError):
        peak_growth_bytes(lambda: 1 // 0)


def test_a_container_s_limit_bounds_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_bytes()
    assert free > 64 * MIB
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(process_memory, "_CGROUP_LIMITS", ((limit, usage),))
    usage.write_text(f"{30 * MIB}\n")
    limit.write_text(f"{50 * MIB}\n")
    assert available_bytes() == 20 * MIB
    assert container_limit_bytes() == 50 * MIB
    limit.write_text(f"{20 * MIB}\n")
    assert available_bytes() == 0
    limit.write_text("max\n")
    assert available_bytes() > 64 * MIB
    assert container_limit_bytes() is None
    limit.unlink()
    assert available_bytes() > 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="tells of Linux's accounting")
def test_code_that_was_let_go_runs_again() -> None:
    program = (
        "import torch\n"
        "from headrace.storage.process_memory import release_code_pages, resident_bytes\n"
        "product = torch.ones(8, 8) @ torch.ones(8, 8)\n"
        "before = resident_bytes()\n"
        "release_code_pages()\n"
        "print(before - resident_bytes())\n"
        "assert torch.equal(torch.ones(8, 8) @ torch.ones(8, 8), product)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) > 10 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="tells of Linux's accounting")
def test_pages_of_code_that_the_system_takes_meanwhile_hide_no_growth() -> None:
    program = (
        "import torch\n"
        "from headrace.storage.process_memory import peak_growth_bytes, release_code_pages\n"
        "torch.ones(8, 8) @ torch.ones(8, 8)\n"
        "kept = []\n"
        "def run():\n"
        "    release_code_pages()\n"
        "    kept.append(bytearray(16 << 20))\n"
        "print(peak_growth_bytes(run))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) >= 16 * MIB
