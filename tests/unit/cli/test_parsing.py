"""Spellings of options."""

from __future__ import annotations

import pytest

from headrace.cli.parsing import CommandParser, dashed, did_you_mean
from headrace.errors import OptionError


def test_underscores_become_dashes_in_option_names_only() -> None:
    assert dashed(["run", "my_rows", "--max_tokens", "a_b", "--dtype=b_c", "-o", "x_y", "--", "--not_me"]) == [
        "run", "my_rows", "--max-tokens", "a_b", "--dtype=b_c", "-o", "x_y", "--", "--not_me",
    ]  # fmt: skip


def test_a_prompt_that_begins_with_dashes_is_no_option() -> None:
    parser = CommandParser("p")
    parser.check_options(["--what_a day", "---"])
    assert dashed(["--what_a day"]) == ["--what_a day"]


def test_options_after_two_dashes_are_not_checked() -> None:
    parser = CommandParser("p")
    parser.check_options(["--help", "--", "--nothing"])
    with pytest.raises(OptionError, match="unknown option --nothing"):
        parser.check_options(["--nothing", "--"])


def test_an_option_is_not_taken_by_its_beginning() -> None:
    parser = CommandParser("p")
    parser.add_argument("--max-tokens")
    with pytest.raises(OptionError):
        parser.parse_args(["--max-to", "5"])


def test_only_what_is_near_is_suggested() -> None:
    assert did_you_mean("--tempurature", ["--temperature", "--top-p"]) == "; did you mean --temperature?"
    assert did_you_mean("--xyz", ["--temperature"]) == ""
