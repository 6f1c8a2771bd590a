"""Sentence patterns of notes: those that training sees, and two sets that it never sees.

A pattern holds slots in braces and choices in brackets: `[Please |]send {items}` stands for two skeletons.
A note is `opening core closing`; openings and closings hold no values. The development patterns may be looked at while
training patterns are written; the held-out ones are for the final figure and for nothing else.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternSet:
    """The patterns that one side of the hold-out draws from; telegrams are lists of labelled fields."""

    orders: tuple[str, ...]
    appointments: tuple[str, ...]
    order_telegrams: tuple[str, ...]
    appointment_telegrams: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]


def expand(pattern: str) -> Iterator[str]:
    """Yield every skeleton that a pattern stands for."""
    parts = _CHOICE.split(pattern)
    for choice in itertools.product(*(p.split("|") if i % 2 else [p] for i, p in enumerate(parts))):
        yield "".join(choice)


def choose(rng: random.Random, pattern: str) -> str:
    """Make every choice of a pattern at random."""
    return _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), pattern)


def read_list(name: str) -> str:
    """Return the text of `lists/<name>.txt`."""
    return (Path(__file__).parent / "lists" / f"{name}.txt").read_text(encoding="utf-8")


def _read_patterns(name: str) -> tuple[str, ...]:
    return tuple(read_list(name).splitlines())


_ASIDE = "[Nice person|A regular|You know them|Lives next door|Was here before|Sounded friendly]"
_SEPARATORS = (". ", ", ", " - ", "; ", "\n", " / ", " | ")


def _order_telegrams() -> Iterator[str]:
    customers = "[Customer: |Client: |Name: |for |from |Buyer: |customer |Ordered by |by |caller: |To: ]{customer}"
    items = "[Order: |Items: |Goods: |wants |needs |Products: |order of |Qty/item: |requests |]{items}"
    dates = "[Date: |Due |due: |for |on |Delivery: |deliver |by |Needed |When: |delivery date |]{date}"
    for separator in _SEPARATORS:
        for fields in itertools.permutations((customers, items, dates)):
            yield separator.join(fields)
        yield separator.join((customers, items))
        yield separator.join((items, customers))

    customers = (
        "[The customer is|The name is|It concerns|It was ordered by|Contact is|We talked to|Buyer is] {customer}"
    )
    items = "[They want|Wanted are|The list says|We should pack|On the list:|Please prepare|The goods:] {items}"
    dates = "[The date is|It must be there by|The deadline is|We deliver on|They come on|Ready on] {date}"
    for fields in itertools.permutations((customers, items, dates)):
        yield ". ".join(fields)
        yield f". {_ASIDE}. ".join(fields)
    yield f"{customers}. {_ASIDE}. {items}"


def _appointment_telegrams() -> Iterator[str]:
    people = "[Customer: |Client: |Name: |for |with |Patient: |customer |Booked by |guest: |caller: |Who: ]{customer}"
    services = "[Appointment: |Service: |Subject: |Booking: |booked: |wants a |What: |needs a |Visit: |]{service}"
    days = "[Date: |on |Day: |When: |for |]{date}"
    times = "[Time: |at |Start: |from |, |@ ]{time}"
    for separator in _SEPARATORS:
        for fields in itertools.permutations((people, services, f"{days} {times}")):
            yield separator.join(fields)
        for fields in itertools.permutations((people, services, days, times)):
            yield separator.join(fields)
    people = "[The customer is|The name is|It concerns|The guest is|Contact is|We talked to|Client is] {customer}"
    services = "[They want a|Wanted is a|The job is a|We should do a|Please prepare a|It is about the] {service}"
    days = "[The date is|It should be on|The day is|They come on|Planned on] {date}"
    times = "[The time is|At|From|They come at|It starts at] {time}"
    for fields in itertools.permutations((people, services, f"{days} at {{time}}")):
        yield ". ".join(fields)
        yield f". {_ASIDE}. ".join(fields)
    for fields in itertools.permutations((people, services, days, times)):
        yield ". ".join(fields)


TRAIN = PatternSet(
    orders=_read_patterns("train_orders"),
    appointments=_read_patterns("train_appointments"),
    order_telegrams=tuple(_order_telegrams()),
    appointment_telegrams=tuple(_appointment_telegrams()),
    openings=_read_patterns("train_openings"),
    closings=_read_patterns("train_closings"),
)

DEVELOPMENT = PatternSet(
    orders=_read_patterns("development_orders"),
    appointments=_read_patterns("development_appointments"),
    order_telegrams=(),
    appointment_telegrams=(),
    openings=_read_patterns("development_openings"),
    closings=_read_patterns("development_closings"),
)

HELD_OUT = PatternSet(
    orders=_read_patterns("held_out_orders"),
    appointments=_read_patterns("held_out_appointments"),
    order_telegrams=(),
    appointment_telegrams=(),
    openings=_read_patterns("held_out_openings"),
    closings=_read_patterns("held_out_closings"),
)


def plain(skeleton: str) -> str:
    """Return the words and slots of a skeleton, without capitals and punctuation."""
    return " ".join(re.findall(r"\w+", skeleton.lower()))


_KEPT_FROM_TRAINING = frozenset(
    plain(pattern) for known in (DEVELOPMENT, HELD_OUT) for pattern in known.orders + known.appointments
)


def is_kept_from_training(skeleton: str) -> bool:
    """Say whether a skeleton is one of the development or of the held-out patterns."""
    return plain(skeleton) in _KEPT_FROM_TRAINING


def all_words() -> frozenset[str]:
    """Return every word, in lower case, that a pattern of any set may put into a note."""
    sets = (TRAIN, DEVELOPMENT, HELD_OUT)
    cores = (known.orders + known.order_telegrams + known.appointments + known.appointment_telegrams for known in sets)
    around = (known.openings + known.closings for known in sets)
    text = " ".join(itertools.chain(*cores, *around))
    return frozenset(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", text).lower()))
