"""Scores the demo model's answers by whether their JSON equals what was expected.

headrace run examples/orders.jsonl -o results.jsonl --model demo
python -m headrace.demo.scoring results.jsonl examples/orders_expected.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path


def is_exact(answer: str, expected: str) -> bool:
    """Say whether an answer parses as JSON and equals the expected JSON; order of keys and spaces do not count."""
    try:
        return bool(json.loads(answer) == json.loads(expected))
    except json.JSONDecodeError:
        return False


def exact_share(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Return the share of answers, 0 to 1, that are exactly right."""
    return sum(map(is_exact, answers, expected)) / len(expected)


def split_shares(answers: Mapping[str, str], expected: Mapping[str, str]) -> dict[str, float]:
    """Return the share that is exactly right per split; a row without an answer is wrong.

    Both map a row's id, `<split>-<number>`, to JSON text.
    """
    rows: defaultdict[str, list[bool]] = defaultdict(list)
    for row_id, wanted in expected.items():
        rows[row_id.rpartition("-")[0]].append(is_exact(answers.get(row_id, ""), wanted))
    return {split: sum(right) / len(right) for split, right in rows.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print which share of a job's answers is exactly right, per split and over all."""
    parser = argparse.ArgumentParser(prog="python -m headrace.demo.scoring", description=main.__doc__)
    parser.add_argument("results", type=Path, help="what `headrace run` wrote: lines with id and text")
    parser.add_argument("expected", type=Path, help="lines with id and expected")
    options = parser.parse_args(arguments)
    results = _read_lines(options.results)
    answers = {str(row["id"]): text for row in results if isinstance(text := row.get("text"), str)}
    expected = {str(row["id"]): json.dumps(row["expected"]) for row in _read_lines(options.expected)}
    for split, share in split_shares(answers, expected).items():
        sys.stdout.write(f"accuracy on {split}: {share * 100:.1f} %\n")
    overall = exact_share([answers.get(row_id, "") for row_id in expected], list(expected.values()))
    sys.stdout.write(f"accuracy: {overall * 100:.1f} %\n")


def _read_lines(path: Path) -> list[dict[str, object]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


if __name__ == "__main__":
    main()
