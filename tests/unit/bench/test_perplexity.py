"""Windows over a text. What a model makes of them is compared with transformers in tests/parity."""

from __future__ import annotations

import pytest

from headrace.bench.perplexity import measure_perplexity, slide
from headrace.errors import OptionError, RequestError
from headrace.testing import EchoLLM


def places(num_tokens: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    return [
        (window.start, window.stop, window.num_scored) for window in slide(num_tokens, context=context, stride=stride)
    ]


def test_a_text_shorter_than_the_context_is_one_window() -> None:
    assert places(7, context=10, stride=5) == [(0, 7, 6)]


def test_windows_that_overlap_score_what_none_before_had() -> None:
    assert places(17, context=10, stride=5) == [(0, 10, 9), (5, 15, 5), (10, 17, 2)]


def test_windows_that_do_not_overlap_leave_out_the_first_token_of_each() -> None:
    assert places(25, context=10, stride=10) == [(0, 10, 9), (10, 20, 9), (20, 25, 4)]
    assert places(21, context=10, stride=10) == [(0, 10, 9), (10, 20, 9)]


@pytest.mark.parametrize("num_tokens", [2, 9, 10, 11, 40, 41])
@pytest.mark.parametrize(("context", "stride"), [(10, 1), (10, 5), (10, 9), (10, 10), (2, 1), (2, 2)])
def test_no_token_is_scored_twice_and_the_windows_reach_the_end(num_tokens: int, context: int, stride: int) -> None:
    found = list(slide(num_tokens, context=context, stride=stride))
    scored = [token for window in found for token in range(window.stop - window.num_scored, window.stop)]
    left_out = set(range(num_tokens)) - set(scored)
    assert sorted(scored) == sorted(set(scored))
    assert left_out == (set(range(0, num_tokens, stride)) if stride == context else {0})
    assert all(window.stop - window.start <= context and window.num_scored < context for window in found)


def test_windows_are_those_of_the_page_of_transformers() -> None:
    """The loop of https://huggingface.co/docs/transformers/perplexity, for a context of 10 and a stride of 4."""
    num_tokens, expected, previous_end = 33, [], 0
    for begin in range(0, num_tokens, 4):
        end = min(begin + 10, num_tokens)
        expected.append((begin, end, min(end - previous_end, end - begin - 1)))
        previous_end = end
        if end == num_tokens:
            break
    assert places(num_tokens, context=10, stride=4) == expected


@pytest.mark.parametrize(
    ("context", "stride", "message"),
    [
        (51, None, "--context is 51; expected at least 2 tokens and at most 50, which it holds here"),
        (1, None, "--context is 1"),
        (10, 11, "--stride is 11; expected at least 1 and at most the context, 10 tokens"),
        (None, 0, "--stride is 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(context: int | None, stride: int | None, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        measure_perplexity(EchoLLM(max_model_len=50), "some text", context=context, stride=stride)


def test_a_text_without_a_second_token_is_refused() -> None:
    with pytest.raises(OptionError, match="the text has 1 tokens; expected at least two"):
        measure_perplexity(EchoLLM(), "a")


def test_a_model_that_cannot_score_ends_it() -> None:
    def fail(step: int) -> None:
        raise RequestError("not finite", code="non_finite_logits")

    with pytest.raises(RequestError, match="not finite"):
        measure_perplexity(EchoLLM(on_step=fail), "some text")
