from __future__ import annotations

from pathlib import Path

import pytest

from headrace.demo.scoring import exact_share, is_exact, main, split_shares


def test_order_of_keys_and_spaces_do_not_count() -> None:
    assert is_exact('{"b":2,  "a": 1}', '{"a": 1, "b": 2}')


def test_another_value_is_wrong() -> None:
    assert not is_exact('{"a": 1}', '{"a": 2}')


def test_text_that_is_no_json_is_wrong() -> None:
    assert not is_exact('{"a": 1', '{"a": 1}')


def test_the_share_is_of_all_rows() -> None:
    assert exact_share(["1", "2", "x", "4"], ["1", "2", "3", "4"]) == 0.75


def test_shares_are_given_per_split_and_a_missing_answer_is_wrong() -> None:
    expected = {"unseen_values-0000": "1", "unseen_values-0001": "2", "unseen_patterns-0000": "3"}
    answers = {"unseen_values-0000": "1", "unseen_patterns-0000": "3"}
    assert split_shares(answers, expected) == {"unseen_values": 0.5, "unseen_patterns": 1.0}


def test_the_command_line_prints_both_splits_and_the_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, expected = tmp_path / "results.jsonl", tmp_path / "expected.jsonl"
    results.write_text(
        '{"id": "unseen_values-0000", "text": "{\\"a\\": 1}"}\n'
        '{"id": "unseen_patterns-0000", "error": {"code": "invalid_value"}}\n'
    )
    expected.write_text(
        '{"id": "unseen_values-0000", "expected": {"a": 1}}\n{"id": "unseen_patterns-0000", "expected": {"a": 2}}\n'
    )
    main([str(results), str(expected)])
    assert capsys.readouterr().out == (
        "accuracy on unseen_values: 100.0 %\naccuracy on unseen_patterns: 0.0 %\naccuracy: 50.0 %\n"
    )
