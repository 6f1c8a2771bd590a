from __future__ import annotations

import pytest

from headrace.scheduler.guessing import LONGEST_MATCH, MOST_TOKENS, Guessing, look_up


@pytest.mark.parametrize(
    ("token_ids", "most", "guess"),
    [
        ([1, 2, 3, 4, 5, 1, 2], 3, (3, 4, 5)),
        ([1, 2, 3, 4, 5, 1, 2], 2, (3, 4)),
        ([1, 2, 3, 4, 5, 1, 2], 0, ()),
        ([1, 2, 9, 1, 2, 8, 1, 2], 1, (8,)),  # the last occurrence
        ([7, 1, 2, 9, 4, 1, 2, 8, 7, 1, 2], 2, (9, 4)),  # the longest match
        ([1, 2, 3, 4, 5], 3, ()),
        ([1, 5, 1], 3, ()),  # one token alone says little
        ([1, 1, 1, 1], 3, (1,)),  # a match may overlap the end, and its text ends there
        ([1], 3, ()),
        ([], 3, ()),
    ],
)
def test_what_followed_the_same_words_before_is_guessed(
    token_ids: list[int], most: int, guess: tuple[int, ...]
) -> None:
    assert look_up(token_ids, most) == guess


def test_a_match_is_as_long_as_need_be_and_not_longer() -> None:
    text = list(range(LONGEST_MATCH))
    assert look_up([*text, 90, 91, *text[1:], 80, *text], 1) == (90,), "the longest match alone tells them apart"
    text = list(range(LONGEST_MATCH + 1))
    assert look_up([*text, 90, 91, *text[1:], 80, *text], 1) == (80,), "longer ones are not looked for"


def test_right_guesses_grow_and_wrong_ones_shrink() -> None:
    guessing = Guessing()
    start = guessing.num_tokens
    guessing.learn(0, 0)
    assert guessing.num_tokens == start
    for _ in range(10):
        guessing.learn(guessing.num_tokens, guessing.num_tokens)
    assert guessing.num_tokens == MOST_TOKENS
    guessing.learn(MOST_TOKENS, 2)
    assert guessing.num_tokens == 3
    guessing.learn(3, 0)
    assert guessing.num_tokens == 1
    assert guessing.guess([1, 2, 3, 4, 1, 2], 9) == (3,)
