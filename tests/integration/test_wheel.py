"""The wheel as a user installs it: in an environment of its own, away from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from headrace.kernels.library import usable

ROOT = Path(__file__).resolve().parents[2]
MAX_WHEEL_BYTES = 12 * 1000**2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel; its dependencies are this environment's, so nothing is downloaded.

    A `.pth` line adds this environment's packages behind the new one's own, and does not follow the `.pth` file there
    by which the repository is installed.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    run(sys.executable, "-m", "pip", "--python", str(folder), "install", "--no-deps", "--no-index", str(wheel))
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(*words: str, cwd: Path | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    answer = subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, f"{' '.join(words)}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def test_the_wheel_holds_the_package_and_the_demo_model_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"headrace"}
    assert "headrace/py.typed" in names
    assert any(name.startswith("headrace/demo/") and name.endswith(".safetensors") for name in names)
    assert not [name for name in names if "test" in name.lower().split("/")[1] and name != "headrace/testing.py"]


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_the_installed_package_is_the_wheels(environment: Path, tmp_path: Path) -> None:
    where = run(str(environment / "bin" / "python"), "-c", "import headrace; print(headrace.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)


@pytest.mark.skipif(not usable(), reason="no compiler")
def test_the_wheel_is_for_this_platform_and_its_kernels_are_used(
    wheel: Path, environment: Path, tmp_path: Path
) -> None:
    assert wheel.stem.endswith(sysconfig.get_platform().replace("-", "_"))
    code = "from headrace.kernels.library import instruction_set; print(instruction_set())"
    assert run(str(environment / "bin" / "python"), "-c", code, cwd=tmp_path).strip() == usable()[0]


def test_the_installed_command_helps(environment: Path, tmp_path: Path) -> None:
    assert "generate" in run(str(environment / "bin" / "headrace"), "--help", cwd=tmp_path)


def test_the_installed_command_generates_with_the_demo_model(environment: Path, tmp_path: Path) -> None:
    command = [str(environment / "bin" / "headrace"), "generate", "--model", "demo", "--max-tokens", "8"]
    assert run(*command, "Two loaves of bread for Ann", cwd=tmp_path).strip()
