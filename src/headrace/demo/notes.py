"""Generates order and appointment notes together with the JSON that they mean.

    python -m headrace.demo.notes --split unseen_values --rows 150 > rows.jsonl

Splits, disjoint by construction:

    train                  training's sentence patterns and values, some patterns with unrelated words mixed in
    unseen_values          training's patterns; every name, product, service, number, date and time is held out
    unseen_patterns        held-out values in held-out patterns
    development_patterns   the same with the patterns that may be looked at while training's are written
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from headrace.demo import noise, patterns, phrases, words

_TELEGRAM_SHARE = 0.2
_DISTURBED_SHARE = 0.4
_MEANINGLESS_SHARE = 0.35

Split = Literal["train", "unseen_values", "development_patterns", "unseen_patterns"]

_PATTERNS: dict[Split, patterns.PatternSet] = {
    "train": patterns.TRAIN,
    "unseen_values": patterns.TRAIN,
    "development_patterns": patterns.DEVELOPMENT,
    "unseen_patterns": patterns.HELD_OUT,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A note, what it means, and where it comes from.

    Attributes:
        text: what a person wrote.
        answer: the JSON text that the model is to give, as `json.dumps` writes it.
        skeleton: the core pattern, its choices made and its slots still empty.
        values: every value as it is drawn, before it was written in one of the many ways: words, ISO dates, numbers.
    """

    text: str
    answer: str
    skeleton: str
    values: tuple[str, ...]


def notes(split: Split, *, seed: int) -> Iterator[Note]:
    """Yield notes of a split without end; the same seed gives the same notes."""
    rng = random.Random(f"{split}/{seed}")
    while True:
        yield _make_note(rng, split)


def _make_note(rng: random.Random, split: Split) -> Note:
    held_out = split != "train"
    known = _PATTERNS[split]
    is_order = rng.random() < 0.5
    if is_order:
        choices, telegrams = known.orders, known.order_telegrams
    else:
        choices, telegrams = known.appointments, known.appointment_telegrams
    pattern = rng.choice(telegrams if telegrams and rng.random() < _TELEGRAM_SHARE else choices)
    skeleton = sentence = patterns.choose(rng, pattern)
    noisy = split == "train"
    if noisy and rng.random() < _DISTURBED_SHARE:
        sentence = noise.disturb(rng, skeleton)
    values: list[str] = []
    customer = _pick_customer(rng, held_out, values)
    date = time = None
    slots = {"customer": customer}
    if "{date}" in skeleton:
        day = phrases.pick_date(rng, held_out=held_out)
        date = day.isoformat()
        slots["date"] = phrases.write_date(rng, day)
        values.append(date)
    if is_order:
        items = [
            (phrases.pick_quantity(rng, held_out=held_out), _pick_product(rng, held_out, values))
            for _ in range(rng.choices((1, 2, 3), (6, 4, 1))[0])
        ]
        values += [str(number) for number, _ in items]
        slots["items"] = phrases.write_items(rng, items)
        listed = [{"quantity": number, "product": product} for number, product in items]
        meaning = {"type": "order", "customer": customer, "items": listed, "date": date}
    else:
        if "{time}" in skeleton:
            time = phrases.pick_time(rng, held_out=held_out)
            slots["time"] = phrases.write_time(rng, time)
            values.append(time)
        service = slots["service"] = _pick_service(rng, held_out, values)
        if service[0] in "aeiou":
            sentence = sentence.replace("a {service}", "an {service}").replace("A {service}", "An {service}")
        meaning = {"type": "appointment", "customer": customer, "service": service, "date": date, "time": time}
    text = _dress(rng, sentence, slots, known, noisy)
    return Note(text=text, answer=json.dumps(meaning, ensure_ascii=False), skeleton=skeleton, values=tuple(values))


def _pick_customer(rng: random.Random, held_out: bool, values: list[str]) -> str:
    first = words.pick_word(rng, words.FIRST_NAMES, held_out=held_out)
    last = words.pick_word(rng, words.LAST_NAMES, held_out=held_out)
    if rng.random() < 0.05:
        last = words.accent(rng, last)
    manner = rng.random()
    if manner < 0.08:
        values.append(first)
        return first
    if manner < 0.25:
        values.append(last)
        return f"{rng.choice(words.TITLES)} {last}"
    if manner < 0.29:
        values.append(last)
        return f"{first[0]}. {last}"
    values += [first, last]
    if manner < 0.36:
        second = words.pick_word(rng, words.LAST_NAMES, held_out=held_out)
        values.append(second)
        return f"{first} {last}{rng.choice('- ')}{second}"
    if manner < 0.4:
        return first + rng.choice((" van ", " de ", " O'", " Mc", " al-")) + last
    return f"{first} {last}"


def _pick_product(rng: random.Random, held_out: bool, values: list[str]) -> str:
    return _pick_thing(rng, words.QUALITIES, words.GOODS, held_out, values)


def _pick_service(rng: random.Random, held_out: bool, values: list[str]) -> str:
    return _pick_thing(rng, words.SUBJECTS, words.SERVICES, held_out, values)


def _pick_thing(rng: random.Random, before: list[str], nouns: list[str], held_out: bool, values: list[str]) -> str:
    num_before = rng.choices((0, 1, 2), (4, 6, 1))[0]
    thing = [words.pick_word(rng, before, held_out=held_out) for _ in range(num_before)]
    thing.append(words.pick_word(rng, nouns, held_out=held_out))
    values += thing
    return " ".join(thing)


def _dress(rng: random.Random, sentence: str, slots: dict[str, str], known: patterns.PatternSet, noisy: bool) -> str:
    """Fill the slots and put the sentence between an opening and a closing, with a person's care for capitals."""

    def around(choices: tuple[str, ...]) -> str:
        if noisy and rng.random() < _MEANINGLESS_SHARE:
            return noise.random_sentence(rng)
        return patterns.choose(rng, rng.choice(choices))

    parts = [sentence]
    if rng.random() < 0.3:
        parts.insert(0, around(known.openings))
    if rng.random() < 0.35:
        parts.append(around(known.closings))
    care = rng.random()
    if care < 0.1:
        parts = [part.lower() for part in parts]
    elif care < 0.6:
        parts = [part[0].upper() + part[1:] for part in parts]
    if sentence[-1] not in ".?!" and (len(parts) > 1 or rng.random() < 0.5):
        place = [part.lower() for part in parts].index(sentence.lower())
        parts[place] += rng.choice(".....!")
    return rng.choice((" ", " ", " ", "\n")).join(parts).format_map(slots)


def main(arguments: list[str] | None = None) -> None:
    """Write rows of a split as JSON Lines to stdout."""
    parser = argparse.ArgumentParser(prog="python -m headrace.demo.notes", description=main.__doc__)
    parser.add_argument("--split", choices=get_args(Split), default="unseen_values", help="default: unseen_values")
    parser.add_argument("--rows", type=int, default=100, metavar="N", help="how many rows; default: 100")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--expected", action="store_true", help="write the expected answers, not the requests")
    options = parser.parse_args(arguments)
    for index, note in zip(range(options.rows), notes(options.split, seed=options.seed), strict=False):
        row: dict[str, object] = {"id": f"{options.split}-{index:04}"}
        if options.expected:
            row["expected"] = json.loads(note.answer)
        else:
            row["messages"] = [{"role": "user", "content": note.text}]
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
