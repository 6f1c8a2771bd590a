"""The words that values are made of, real and invented, and which of them training never sees."""

from __future__ import annotations

import random
import zlib

from headrace.demo.patterns import all_words, read_list

COMMON_WORDS = read_list("common_words").split()
PHRASE_WORDS = frozenset(
    word.lower() for name in ("phrase_words", "calendar", "numerals") for word in read_list(name).split()
)
_NEVER_HELD_OUT = all_words() | PHRASE_WORDS | set(COMMON_WORDS)
_HELD_OUT_SHARE = 6


def is_held_out(value: str) -> bool:
    """Say whether a value (a word, an ISO date, a time, a number) is kept out of training.

    It depends on the value alone, so that no split can contain what another one is made of. Words of the sentence
    patterns and common words are never held out, since training sees them.
    """
    return value.lower() not in _NEVER_HELD_OUT and zlib.crc32(value.lower().encode()) % _HELD_OUT_SHARE == 0


FIRST_NAMES = read_list("first_names").split()
LAST_NAMES = read_list("last_names").split()
QUALITIES = read_list("qualities").split()
GOODS = read_list("goods").split()
SUBJECTS = read_list("subjects").split()
SERVICES = read_list("services").split()
WORD_LISTS = (FIRST_NAMES, LAST_NAMES, QUALITIES, GOODS, SUBJECTS, SERVICES)
TITLES = ("Mr", "Mrs", "Ms", "Dr", "Mr.", "Mrs.", "Ms.", "Dr.", "Prof.")

_ONSETS, _VOWELS, _CODAS, _ENDINGS = (line.split() for line in read_list("syllables").splitlines())
_ACCENTS = str.maketrans({"a": "ä", "e": "é", "i": "í", "o": "ö", "u": "ü", "n": "ñ", "c": "ç"})
_ANY_LETTER = "abcdefghijklmnopqrstuvwxyz"


def invent_word(rng: random.Random, *, held_out: bool) -> str:
    """Make up a lower-case word of 4 to 11 letters on the asked side of the hold-out."""
    while True:
        if rng.random() < 0.04:
            word = "".join(rng.choices(_ANY_LETTER, k=rng.randint(4, 8)))
        else:
            syllables = rng.choice((1, 2, 2, 3))
            word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
            word += rng.choice(["", *_CODAS])
            if rng.random() < 0.3:
                word += rng.choice(_ENDINGS)
        if 4 <= len(word) <= 11 and is_held_out(word) == held_out and word not in _NEVER_HELD_OUT:
            return word


def pick_word(rng: random.Random, known: list[str], *, held_out: bool, invented: float = 0.4) -> str:
    """Pick a word of a list, or with probability `invented` make one up, on the asked side of the hold-out."""
    if rng.random() >= invented:
        for _ in range(64):
            word = rng.choice(known)
            if is_held_out(word) == held_out:
                return word
    word = invent_word(rng, held_out=held_out)
    return word.capitalize() if known[0][0].isupper() else word


def accent(rng: random.Random, word: str) -> str:
    """Put an accent on one letter of a word, unless that moves it across the hold-out."""
    place = rng.randrange(len(word))
    accented = word[:place] + word[place].translate(_ACCENTS) + word[place + 1 :]
    return accented if is_held_out(accented) == is_held_out(word) else word
