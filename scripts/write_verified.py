"""Writes docs/verified.md: what `make verify` ran, on what, and what it measured.

python scripts/write_verified.py --junit build/verify.xml --figures build/figures.json --demo build/demo.txt
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("headrace", "torch", "transformers", "tokenizers", "safetensors", "numpy", "greenlet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--junit", type=Path, required=True, help="what pytest --junitxml wrote")
    parser.add_argument("--figures", type=Path, required=True, help="what pytest --figures wrote")
    parser.add_argument("--demo", type=Path, required=True, help="what `make demo` printed on stdout")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "verified.md")
    arguments = parser.parse_args()

    suites = read_suites(arguments.junit)
    figures = json.loads(arguments.figures.read_text(encoding="utf-8"))
    figures |= {f"demo job: {name}": value for name, value in demo_figures(arguments.demo.read_text(encoding="utf-8"))}
    arguments.output.write_text(page(suites, figures), encoding="utf-8")
    print(f"wrote {arguments.output}")


def read_suites(junit: Path) -> dict[str, Counter[str]]:
    """Returns for each folder of tests how many passed, were skipped, or failed, and its `seconds`."""
    suites: dict[str, Counter[str]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        folder = "/".join(case.get("classname", "").split(".")[:2])
        outcomes = {child.tag for child in case}
        outcome = "failed" if outcomes & {"failure", "error"} else "skipped" if "skipped" in outcomes else "passed"
        counts = suites.setdefault(folder, Counter())
        counts[outcome] += 1
        counts["milliseconds"] += round(1000 * float(case.get("time", 0)))
    return dict(sorted(suites.items()))


def demo_figures(text: str) -> list[tuple[str, str]]:
    """Returns the lines `name: value` of the demo's output whose name speaks of accuracy."""
    return re.findall(r"^\s*([^:\n]*accuracy[^:\n]*):\s*(.+?)\s*$", text, flags=re.MULTILINE)


def page(suites: dict[str, Counter[str]], figures: dict[str, str]) -> str:
    total = sum(suites.values(), Counter[str]())
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        "# Verified",
        "",
        "Written by `make verify`, which runs every suite whole.",
        "",
        f"* Commit: {commit()}",
        f"* Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"* Machine: {machine()}",
        f"* Versions: Python {platform.python_version()}, {versions}",
        "",
        "| tests | passed | skipped | failed | time |",
        "|---|---:|---:|---:|---:|",
        *(row(f"`{folder}`", counts) for folder, counts in suites.items()),
        row("all", total),
    ]
    if figures:
        lines += ["", "| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())]
    return "\n".join(lines) + "\n"


def row(name: str, counts: Counter[str]) -> str:
    seconds = counts["milliseconds"] / 1000
    return f"| {name} | {counts['passed']} | {counts['skipped']} | {counts['failed']} | {seconds:.0f} s |"


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!docs/verified.md")
    return f"`{git('rev-parse', 'HEAD')[:12]}`" + (" with uncommitted changes" if changed else "")


def machine() -> str:
    import psutil
    import torch

    memory = f"{psutil.virtual_memory().total / 1024**3:.0f} GiB memory"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{processor()}, {os.cpu_count()} cores, {memory}, {device}, {platform.system()}"


def processor() -> str:
    try:
        name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        name = None
    return name[1] if name else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
