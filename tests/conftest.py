"""What all tests share: one thread per test, the seeded sample of slow tests, fixtures for data and figures."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path

# Before anything imports torch or tokenizers: results must not depend on the number of cores, and a fork must be quiet.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import settings

# A shell starts what runs in its background with Ctrl-C ignored; tests send it to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

_CACHE = tempfile.TemporaryDirectory(prefix="headrace-tests-")
os.environ["HEADRACE_CACHE"] = _CACHE.name

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_SEED = 2

settings.register_profile("sample", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=500, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("headrace")
    group.addoption(
        "--sample-slow",
        metavar="SEED:FRACTION",
        type=_parse_sample,
        help="run only this part of the slow tests of every file, at least one; the same seed, the same tests",
    )
    group.addoption("--thorough", action="store_true", help="more examples of every property, drawn anew each time")
    group.addoption("--figures", metavar="FILE", type=Path, help="write the figures that tests measured to this file")


def _parse_sample(text: str) -> tuple[int, float]:
    seed, colon, fraction = text.rpartition(":")
    return (int(seed) if colon else DEFAULT_SEED, float(fraction))


_FIGURE = "figure: "


class FigureFile:
    """Collects what tests measured, in whatever process they ran."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._figures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name.startswith(_FIGURE):
                self._figures[name.removeprefix(_FIGURE)] = str(value)

    def pytest_sessionfinish(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._figures, indent=2, ensure_ascii=False) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("--thorough") else "sample")
    file = config.getoption("--figures")
    if file is not None and not hasattr(config, "workerinput"):  # workers of pytest-xdist report to one process
        config.pluginmanager.register(FigureFile(file))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sample = config.getoption("--sample-slow")
    slow = [item for item in items if "slow" in item.keywords]
    if sample is not None and slow:
        chosen = sample_slow([item.nodeid for item in slow], *sample)
        left_out = [item for item in slow if item.nodeid not in chosen]
        items[:] = [item for item in items if "slow" not in item.keywords or item.nodeid in chosen]
        config.hook.pytest_deselected(items=left_out)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            drawn = (
                f"{len(chosen)} of {len(slow)} slow tests, {sample[1]:.0%} of every file, drawn with seed {sample[0]}"
            )
            reporter.write_line(f"{drawn} (--sample-slow={sample[0]}:{sample[1]:g})")
    on_gpu = [item for item in items if "gpu" in item.keywords]
    if on_gpu and not _has_cuda():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


def sample_slow(node_ids: list[str], seed: int, fraction: float) -> set[str]:
    """Returns the slow tests to run: of each file the same part, at least one, drawn by seed and file name alone."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for node_id in sorted(node_ids):
        by_file[node_id.partition("::")[0]].append(node_id)
    return {
        node_id
        for file, members in by_file.items()
        for node_id in random.Random(f"{seed}:{file}").sample(members, ceil(fraction * len(members)))
    }


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def record_figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`record_figure("loading a 1B checkpoint, peak memory", "2.9 GiB")`: goes into docs/verified.md."""

    def record(name: str, value: str) -> None:
        request.node.user_properties.append((f"{_FIGURE}{name}", value))

    return record


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real tokenizers, small trained models and texts, which lies beside the repository, not in it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the test data folder ../shared/data beside the repository, which is not there")
    return folder


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The name of the model that comes with the package."""
    if not any((ROOT / "src" / "headrace" / "demo").rglob("*.safetensors")):
        pytest.skip("needs the demo model in src/headrace/demo, which is not there")
    return "demo"


@pytest.fixture(scope="session", autouse=True)
def no_threads_are_left_behind() -> Iterator[None]:
    """Fails the session when a thread that a test started, or made something start, still runs at its end."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while (left := _started_since(before)) and time.monotonic() < deadline:
        for thread in left:
            thread.join(timeout=0.1)
    assert not left, f"threads still running at the end of the tests: {[thread.name for thread in left]}"


def _started_since(before: set[threading.Thread]) -> list[threading.Thread]:
    # tqdm, which transformers and huggingface_hub use, keeps one monitor thread for the life of the process.
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and type(thread).__module__ != "tqdm._monitor"
    ]
