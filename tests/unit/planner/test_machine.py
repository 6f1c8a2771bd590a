"""What a machine and its disks are."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from headrace.planner import machine
from headrace.planner.disk import describe_disk, device_id
from headrace.planner.machine import describe_machine, identify_machine


def test_the_machine_is_described() -> None:
    found = describe_machine()
    assert found.cpu and found.torch != "unknown" and found.transformers != "unknown"
    assert 1 <= found.num_cores <= (psutil.cpu_count() or 1)
    assert 0 < found.memory_free_bytes <= found.memory_total_bytes
    assert identify_machine().torch == found.torch


@pytest.mark.parametrize(
    ("info", "name", "sets"),
    [
        ("model name\t: Xeon\nflags\t\t: sse avx2 avx512f avx512_vnni\n", "Xeon", ("avx2", "avx512", "vnni")),
        ("model name : EPYC\nflags : avx2 avx_vnni avx512_bf16 amx_tile\n", "EPYC", ("avx2", "vnni", "bf16", "amx")),
        ("Features\t: asimd sve bf16 i8mm\n", None, ("bf16", "neon", "sve", "i8mm")),
    ],
)  # fmt: skip
def test_processors_are_read_as_linux_names_them(
    info: str, name: str | None, sets: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    assert machine.instruction_sets() == sets
    assert name is None or machine.cpu_name() == name


def test_a_folder_s_disk_is_described_and_nothing_stays_there(tmp_path: Path) -> None:
    found = describe_disk(tmp_path)
    assert 0 < found.free_bytes <= found.total_bytes
    assert found.device_id == device_id(tmp_path)
    assert found.direct_reads in (True, False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_yet_is_on_the_disk_of_the_one_above(tmp_path: Path) -> None:
    found = describe_disk(tmp_path / "a" / "b")
    assert (found.folder, found.device_id) == (str(tmp_path / "a" / "b"), device_id(tmp_path))
    assert not (tmp_path / "a").exists()
