"""The output of a job: always the longest finished prefix, in a file that nothing else may lose."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import OptionError, UsageError
from headrace.jobs.ordered_output import OrderedOutput


def line(index: int) -> bytes:
    return b"%d %s\n" % (index, b"x" * (index % 7))


@given(order=st.permutations(range(12)))
def test_the_file_is_the_longest_finished_prefix_at_any_time(
    order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("output") / "out"
    done: set[int] = set()
    with OrderedOutput(str(path)) as output:
        for index in order:
            output.put(index, line(index))
            done.add(index)
            prefix = next(i for i in range(13) if i not in done)
            assert path.read_bytes() == b"".join(map(line, range(prefix)))
            assert output.num_written == prefix
    assert path.read_bytes() == b"".join(map(line, range(12)))


def test_the_spool_has_no_name_and_is_emptied_when_the_prefix_catches_up(tmp_path: Path) -> None:
    with OrderedOutput(str(tmp_path / "out")) as output:
        for index in range(1, 100):
            output.put(index, line(index))
        assert [file.name for file in tmp_path.iterdir()] == ["out"]
        assert output.spooled_bytes == sum(len(line(index)) for index in range(1, 100))
        output.put(0, line(0))
        assert output.spooled_bytes == 0


def test_draining_writes_what_is_finished_and_leaves_the_gaps_out(tmp_path: Path) -> None:
    with OrderedOutput(str(tmp_path / "out")) as output:
        for index in (5, 0, 3):
            output.put(index, line(index))
        assert output.drain() == 2
    assert (tmp_path / "out").read_bytes() == line(0) + line(3) + line(5)


def test_nothing_is_touched_before_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "out"
    OrderedOutput(str(path)).check()
    assert not path.exists()
    path.write_text("precious")
    OrderedOutput(str(path), overwrite=True).check()
    assert path.read_text() == "precious"


def test_a_file_that_holds_something_is_not_replaced_without_being_told(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("precious")
    output = OrderedOutput(str(path))
    for attempt in (output.check, output.open):
        with pytest.raises(OptionError, match=r"out exists; give another file, or --overwrite"):
            attempt()
    assert path.read_text() == "precious"
    with OrderedOutput(str(path), overwrite=True) as replaced:
        replaced.put(0, b"new\n")
    assert path.read_text() == "new\n"


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.touch()
    with OrderedOutput(str(path)) as output:
        output.put(0, b"a\n")
    assert path.read_text() == "a\n"


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("{}")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OptionError, match="is the input"):
        OrderedOutput(str(tmp_path / "link"), overwrite=True).check(input_path=path)


def test_a_folder_and_a_missing_folder_are_no_places_for_output(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="it is a folder"):
        OrderedOutput(str(tmp_path)).check()
    with pytest.raises(OptionError, match="does not exist; create it"):
        OrderedOutput(str(tmp_path / "no" / "out")).check()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device that is always full")
def test_a_full_disk_is_one_clear_sentence() -> None:
    with (
        OrderedOutput("/dev/full") as output,
        pytest.raises(UsageError, match=r"cannot write /dev/full: No space left on device; it holds the 0 rows"),
    ):
        output.put(0, b"a\n")


def test_after_a_full_disk_the_file_ends_with_a_whole_line(tmp_path: Path) -> None:
    # A limit on the size of files is the one way to fill a disk in the middle of a line without a disk.
    program = """
import resource, signal, sys
from headrace.errors import UsageError
from headrace.jobs.ordered_output import OrderedOutput

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
with OrderedOutput(sys.argv[1]) as output:
    output.put(0, b"the first line\\n")
    try:
        output.put(1, b"the second line\\n")
    except UsageError as error:
        print(error)
"""
    path = tmp_path / "out"
    answer = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert answer.stdout == f"cannot write {path}: File too large; it holds the 1 rows finished so far\n"
    assert path.read_bytes() == b"the first line\n"


def test_many_rows_far_out_of_order_cost_offsets_only(tmp_path: Path) -> None:
    order = list(range(1, 2_000))
    random.Random(1).shuffle(order)
    with OrderedOutput(str(tmp_path / "out")) as output:
        for index in order:
            output.put(index, b"%d " % index + b"y" * 1_000 + b"\n")
        held = sum(sys.getsizeof(item) for pair in output._spooled.items() for item in pair)
        assert held < 300_000 < output.spooled_bytes
        output.put(0, b"0 \n")
    assert [int(row.split()[0]) for row in (tmp_path / "out").read_text().splitlines()] == list(range(2_000))
