"""Unrelated words in training notes, so that wording nobody has seen is not taken for a name or for goods."""

from __future__ import annotations

import random

from headrace.demo import patterns, words

# These stand between values and say where one ends; they stay.
_JOINTS = frozenset(patterns.read_list("joints").split())
_OPEN_ENDED = ("{items}", "{service}")
_VALUE_WORDS = {word.lower() for known in words.WORD_LISTS for word in known}
_FILLERS = [word for word in words.COMMON_WORDS if word not in _VALUE_WORDS | words.PHRASE_WORDS | _JOINTS]


def random_sentence(rng: random.Random) -> str:
    """Return two to eight words that mean nothing, as a sentence."""
    chosen = [rng.choice(words.COMMON_WORDS) for _ in range(rng.randint(2, 8))]
    chosen = [word for word in chosen if word not in words.PHRASE_WORDS] or ["so"]
    if len(chosen) > 3 and rng.random() < 0.3:
        chosen[rng.randrange(1, len(chosen) - 1)] += ","
    return " ".join(chosen).capitalize() + rng.choice("....!?")


def disturb(rng: random.Random, skeleton: str) -> str:
    """Exchange and add a few words where they cannot be read as part of a value; never returns a held-out skeleton."""
    old = skeleton.split(" ")
    new: list[str] = []
    if rng.random() < 0.15:
        new.append(rng.choice(_FILLERS).capitalize() + rng.choice(("", "", ",", ":")))
    for place, word in enumerate(old):
        follows_open_end = place > 0 and old[place - 1] in _OPEN_ENDED
        if word.isalpha() and word.lower() not in _JOINTS and not follows_open_end and rng.random() < 0.2:
            filler = rng.choice(_FILLERS)
            word = filler.capitalize() if word[0].isupper() else filler
        new.append(word)
        following = old[place + 1] if place + 1 < len(old) else "{items}"
        if word in ("{customer}", "{date}", "{time}") and following not in _OPEN_ENDED and rng.random() < 0.15:
            new += rng.choices(_FILLERS, k=rng.randint(1, 2))
    disturbed = " ".join(new)
    return skeleton if patterns.is_kept_from_training(disturbed) else disturbed
