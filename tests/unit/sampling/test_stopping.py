from __future__ import annotations

from headrace.sampling.stopping import StopStrings


def test_without_stop_strings_everything_is_passed_on() -> None:
    stops = StopStrings(())
    assert stops.push("abc") == ("abc", None)
    assert stops.flush() == ""


def test_nothing_of_a_stop_string_is_passed_on() -> None:
    assert StopStrings(("\n\n",)).push("one\n\ntwo") == ("one", "\n\n")


def test_a_stop_string_across_pieces_is_found() -> None:
    stops = StopStrings(("</s>",))
    assert stops.push("hello<") == ("hello", None)
    assert stops.push("/") == ("", None)
    assert stops.push("s> more") == ("", "</s>")


def test_text_that_only_looked_like_a_stop_string_is_passed_on_later() -> None:
    stops = StopStrings(("</s>",))
    assert stops.push("a</") == ("a", None)
    assert stops.push("b>") == ("</b>", None)


def test_text_held_back_at_the_end_is_flushed() -> None:
    stops = StopStrings(("END",))
    assert stops.push("the EN") == ("the ", None)
    assert stops.flush() == "EN"
    assert stops.flush() == ""


def test_a_repeated_start_of_a_stop_string_is_held_once() -> None:
    stops = StopStrings(("aab",))
    assert stops.push("aaa") == ("a", None)
    assert stops.push("b") == ("", "aab")


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert StopStrings(("abcd", "bc")).push("xabcd") == ("xa", "bc")


def test_of_stop_strings_complete_at_the_same_character_the_longest_wins() -> None:
    assert StopStrings(("c", "abc")).push("xabc") == ("x", "abc")


def test_text_without_the_start_of_a_stop_string_is_not_held_back() -> None:
    stops = StopStrings(("stop", "。"))
    assert [stops.push(piece) for piece in ("你", "好", "!")] == [("你", None), ("好", None), ("!", None)]
