"""Writes docs/models.md: which architectures run exactly, as tests/parity/test_all_types.py has just shown.

python scripts/write_models_page.py --junit build/verify.xml
"""

from __future__ import annotations

import argparse
import re
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

from headrace.models.architectures import EXACT, REFUSED

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "test_rows_that_enter_later_and_share_prefixes_are_generated_as_alone": "mixed",
    "test_rows_that_lose_their_blocks_are_generated_as_alone": "preempted",
    "test_streamed_weights_give_the_tokens_of_generate": "streamed",
    "test_a_saved_model_is_generated_from_as_by_transformers": "from files",
}
HEAD = """# Models

Written by `make verify` and `make models`, from what [test_all_types.py](../tests/parity/test_all_types.py) showed.

transformers {version} has {total} architectures that it calls causal language models. **{exact} run exactly**: greedy
tokens in float32 are those of transformers' `generate` for each row alone, on a tiny model of random weights,

* *mixed*: rows that enter later, share prefixes, and are cut into chunks over several micro-batches of a sweep;
* *preempted*: rows that lose their blocks and are computed again;
* *streamed*: no weights stay in memory;
* *from files*: loaded from a checkpoint folder by `LLM`.

The others are refused by name, each for a reason, before anything is loaded. What "adapter" names is a file of
`src/headrace/models/adapters`: the architecture does not use transformers' attention interface there.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--junit", type=Path, required=True, help="what pytest --junitxml wrote")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "models.md")
    arguments = parser.parse_args()
    arguments.output.write_text(page(*read(arguments.junit)), encoding="utf-8")
    print(f"wrote {arguments.output}")


def read(junit: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Returns for each model what came out of each test, and the properties that the tests recorded."""
    outcomes: dict[str, dict[str, str]] = {}
    properties: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        found = re.fullmatch(r"(\w+)\[(.+)\]", case.get("name", ""))
        if not case.get("classname", "").endswith("test_all_types") or found is None or found[1] not in TESTS:
            continue
        failed = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcomes.setdefault(found[2], {})[TESTS[found[1]]] = "no" if failed else "yes"
        for item in case.iter("property"):
            properties.setdefault(found[2], {})[item.get("name", "")] = item.get("value", "")
    return outcomes, properties


def page(outcomes: dict[str, dict[str, str]], properties: dict[str, dict[str, str]]) -> str:
    columns = list(TESTS.values())
    lines = [
        HEAD.format(version=version("transformers"), total=len(EXACT) + len(REFUSED), exact=len(EXACT)),
        "## Exact",
        "",
        f"| model_type | {' | '.join(columns)} | adapter | keeps |",
        f"|---|{'---|' * len(columns)}---|---|",
    ]
    for name in sorted(outcomes):
        cells = [outcomes[name].get(column, "not run") for column in columns]
        said = properties.get(name, {})
        lines.append(f"| `{name}` | {' | '.join(cells)} | {said.get('adapters', '')} | {said.get('keeps', '')} |")
    lines += ["", "## Refused", "", "| model_type | why |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
