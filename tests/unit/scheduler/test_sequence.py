from __future__ import annotations

import pytest

from headrace.scheduler.sequence import Sequence, Status


def make_sequence(*, max_tokens: int = 10, min_tokens: int = 0) -> Sequence:
    return Sequence(
        sequence_id=0,
        request_id=0,
        prompt_ids=(5, 6),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_ids=frozenset({1, 2}),
    )


def test_a_stop_id_ends_a_sequence_and_is_its_last_token() -> None:
    sequence = make_sequence()
    sequence.append(7)
    assert sequence.finish_reason is None
    sequence.append(2)
    assert (sequence.status, sequence.finish_reason, sequence.stop_token) == (Status.FINISHED, "stop", 2)
    assert sequence.output_ids == [7, 2]


def test_max_tokens_ends_a_sequence() -> None:
    sequence = make_sequence(max_tokens=1)
    sequence.append(7)
    assert (sequence.finish_reason, sequence.stop_token) == ("length", None)


def test_a_stop_id_before_min_tokens_is_a_token_like_any_other() -> None:
    sequence = make_sequence(min_tokens=2)
    sequence.append(1)
    sequence.append(1)
    assert sequence.finish_reason is None
    sequence.append(1)
    assert sequence.finish_reason == "stop"


def test_a_stop_id_as_the_last_token_allowed_counts_as_a_stop() -> None:
    sequence = make_sequence(max_tokens=1)
    sequence.append(1)
    assert sequence.finish_reason == "stop"


def test_a_sequence_without_a_prompt_raises() -> None:
    with pytest.raises(AssertionError, match="no token to begin with"):
        Sequence(sequence_id=0, request_id=0, prompt_ids=(), max_tokens=1)
