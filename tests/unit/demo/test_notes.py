from __future__ import annotations

import itertools
import json
import random
import re

import pytest

from headrace.demo import noise, patterns
from headrace.demo.notes import Note, Split, main, notes
from headrace.demo.words import WORD_LISTS, is_held_out

UNSEEN: tuple[Split, ...] = ("unseen_values", "development_patterns", "unseen_patterns")
SPLITS: tuple[Split, ...] = ("train", *UNSEEN)


def take(split: Split, num_rows: int, seed: int = 3) -> list[Note]:
    return list(itertools.islice(notes(split, seed=seed), num_rows))


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.lower()))


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_notes(split: Split) -> None:
    assert take(split, 50) == take(split, 50)
    assert take(split, 50) != take(split, 50, seed=4)


@pytest.mark.parametrize("split", UNSEEN)
def test_every_value_of_an_unseen_split_is_held_out(split: Split) -> None:
    assert all(is_held_out(value) for note in take(split, 500) for value in note.values)


def test_no_value_of_training_is_held_out() -> None:
    assert not any(
        is_held_out(value)
        for note in take("train", 2000)
        for value in note.values
        if not (value.isdigit() and int(value) <= 59)
    )


@pytest.mark.parametrize("split", UNSEEN)
def test_no_held_out_word_or_number_occurs_anywhere_in_training_notes(split: Split) -> None:
    training = take("train", 5000)
    seen_words = set().union(*(words_of(note.text) for note in training))
    seen_numbers = {n for note in training for n in re.findall(r"\d+", note.text)}
    seen_values = {value for note in training for value in note.values}
    for note in take(split, 500):
        for value in note.values:
            if value.isalpha():
                assert value.lower() not in seen_words
            elif value.isdigit():
                assert value not in seen_numbers
            else:
                assert value not in seen_values


def test_no_held_out_sentence_pattern_can_come_out_of_a_training_pattern() -> None:
    def skeletons(known: patterns.PatternSet) -> set[str]:
        cores = known.orders + known.appointments + known.order_telegrams + known.appointment_telegrams
        return {patterns.plain(skeleton) for pattern in cores for skeleton in patterns.expand(pattern)}

    seen, looked_at, held_out = map(skeletons, (patterns.TRAIN, patterns.DEVELOPMENT, patterns.HELD_OUT))
    assert len(seen) > 5000
    assert len(held_out) >= 50
    assert not seen & held_out
    assert not looked_at & held_out
    assert not seen & looked_at


def test_mixing_in_words_never_makes_a_held_out_pattern() -> None:
    rng = random.Random(0)
    assert patterns.is_kept_from_training(patterns.HELD_OUT.orders[0])
    disturbed = {noise.disturb(rng, rng.choice(patterns.TRAIN.orders)) for _ in range(2000)}
    assert not any(patterns.is_kept_from_training(skeleton) for skeleton in disturbed)


def test_held_out_openings_and_closings_are_not_those_of_training() -> None:
    def phrases(known: patterns.PatternSet) -> set[str]:
        return {
            patterns.plain(text) for pattern in known.openings + known.closings for text in patterns.expand(pattern)
        }

    assert not phrases(patterns.TRAIN) & phrases(patterns.HELD_OUT)
    assert not phrases(patterns.DEVELOPMENT) & phrases(patterns.HELD_OUT)


def test_rows_of_unseen_patterns_use_held_out_skeletons_only() -> None:
    held_out = {s for p in patterns.HELD_OUT.orders + patterns.HELD_OUT.appointments for s in patterns.expand(p)}
    assert {note.skeleton for note in take("unseen_patterns", 500)} <= held_out


def test_no_word_of_a_list_that_is_held_out_stands_in_a_pattern() -> None:
    held_out = {word.lower() for known in WORD_LISTS for word in known if is_held_out(word)}
    assert held_out
    assert not held_out & patterns.all_words()


def test_training_sees_every_month_hour_and_minute_that_unseen_dates_and_times_combine() -> None:
    def parts(split: Split) -> set[str]:
        answers = [json.loads(note.answer) for note in take(split, 5000)]
        months = {"month " + answer["date"][5:7] for answer in answers if answer["date"]}
        times = {answer["time"] for answer in answers if answer.get("time")}
        return months | {"hour " + time[:2] for time in times} | {"minute " + time[3:] for time in times}

    assert parts("unseen_values") <= parts("train")


@pytest.mark.parametrize("split", SPLITS)
def test_an_answer_copies_names_and_goods_from_the_note(split: Split) -> None:
    for note in take(split, 200):
        answer = json.loads(note.answer)
        copied = [answer["customer"]]
        copied += [item["product"] for item in answer["items"]] if answer["type"] == "order" else [answer["service"]]
        assert all(value in note.text for value in copied)


def test_the_command_line_writes_requests_and_expected_answers_under_the_same_ids(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--split", "unseen_patterns", "--rows", "3"])
    requests = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    main(["--split", "unseen_patterns", "--rows", "3", "--expected"])
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in requests] == [row["id"] for row in expected]
    assert requests[0]["messages"][0]["role"] == "user"
    assert expected[0]["expected"]["type"] in ("order", "appointment")
