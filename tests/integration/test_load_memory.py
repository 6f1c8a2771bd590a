from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.units import MIB, format_bytes

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "load_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loading_takes_the_size_of_the_model_and_little_more(
    dtype: str, tmp_path: Path, record_figure: Callable[[str, str], None]
) -> None:
    shape = ["--layers", "4", "--hidden", "1024", "--vocabulary", "65536"]
    command = [sys.executable, str(BENCHMARK), *shape, "--dtype", dtype, "--folder", str(tmp_path)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    more_bytes = result["peak_bytes"] - result["before_loading_bytes"] - result["model_bytes"]
    assert result["within_bound"]
    assert more_bytes < 64 * MIB
    assert list(tmp_path.iterdir()) == []
    record_figure(
        f"loading {format_bytes(result['model_bytes'])} of weights as {dtype}, memory beyond them and the imports",
        format_bytes(more_bytes),
    )
