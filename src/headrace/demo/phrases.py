"""How people write dates, times, amounts and lists of goods, and what is meant by it."""

from __future__ import annotations

import datetime
import random

from headrace.demo.patterns import read_list
from headrace.demo.words import is_held_out

MONTHS, WEEKDAYS = (line.split() for line in read_list("calendar").splitlines())
ONES, TENS = (line.split() for line in read_list("numerals").splitlines())
FIRST_DAY = datetime.date(2024, 1, 1)
LAST_DAY = datetime.date(2039, 12, 31)


def number_in_words(number: int) -> str:
    """Spell a number from 0 to 99."""
    if number < len(ONES):
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{ONES[ones]}" if ones else "")


def pick_quantity(rng: random.Random, *, held_out: bool) -> int:
    """Pick 1 to 999; numbers up to 59, which dates and times are made of too, are never held out."""
    while True:
        highest = rng.choices((20, 99, 999), (8, 7, 5))[0]
        number = rng.randint(1, highest)
        if (number > 59 and is_held_out(str(number))) == held_out:
            return number


def write_quantity(rng: random.Random, number: int) -> str:
    """Write a quantity in digits, in words, or by the dozen."""
    dozens = {6: "half a dozen", 12: "a dozen", 24: "two dozen", 36: "three dozen", 48: "four dozen"}
    if number in dozens and rng.random() < 0.5:
        return dozens[number]
    if number == 2 and rng.random() < 0.25:
        return "a couple of"
    if number < 100 and rng.random() < 0.35:
        return number_in_words(number)
    return str(number)


def write_items(rng: random.Random, items: list[tuple[int, str]]) -> str:
    """Write amounts and goods as one list, all of it in one manner."""
    manner = rng.choices(
        (
            "{n} {p}",
            "{d} x {p}",
            "{d}x {p}",
            "{p} x {d}",
            "{p} x{d}",
            "{p} ({d})",
            "{d} units of {p}",
            "{d} pcs {p}",
            "{p}: {d}",
        ),
        (12, 2, 2, 1, 1, 1, 1, 1, 1),
    )[0]
    written = [manner.format(n=write_quantity(rng, number), d=number, p=product) for number, product in items]
    if len(written) == 1:
        return written[0]
    last = rng.choice((" and ", " and ", " and ", ", ", " plus ", " & ", ", and "))
    return ", ".join(written[:-1]) + last + written[-1]


def pick_date(rng: random.Random, *, held_out: bool) -> datetime.date:
    """Pick a day between 2024 and 2039 on the asked side of the hold-out."""
    while True:
        day = FIRST_DAY + datetime.timedelta(days=rng.randrange((LAST_DAY - FIRST_DAY).days + 1))
        if is_held_out(day.isoformat()) == held_out:
            return day


def _ordinal(day: int) -> str:
    if 10 <= day % 100 <= 20:
        return f"{day}th"
    return f"{day}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th') }"


def write_date(rng: random.Random, day: datetime.date) -> str:
    """Write a date; all-digit forms are year-month-day or day-month-year, as in Europe."""
    month = MONTHS[day.month - 1]
    if rng.random() < 0.35:
        month = month[:3] + rng.choice(("", "."))
    spelled = rng.random() < 0.65
    if spelled:
        written = rng.choice(
            (
                f"{day.day} {month} {day.year}",
                f"{day.day} {month} {day.year}",
                f"{month} {day.day}, {day.year}",
                f"{month} {day.day} {day.year}",
                f"{_ordinal(day.day)} of {month} {day.year}",
                f"{_ordinal(day.day)} {month} {day.year}",
                f"{month} {_ordinal(day.day)}, {day.year}",
            )
        )
    else:
        written = rng.choice(
            (
                f"{day.day:02}.{day.month:02}.{day.year}",
                f"{day.day}.{day.month}.{day.year}",
                f"{day.day:02}/{day.month:02}/{day.year}",
                f"{day.day}/{day.month}/{day.year}",
                day.isoformat(),
            )
        )
    if rng.random() < 0.12:
        weekday = WEEKDAYS[day.weekday()]
        written = rng.choice((f"{weekday}, {written}", f"{weekday} {written}", f"{weekday[:3]} {written}"))
    return written


def pick_time(rng: random.Random, *, held_out: bool) -> str:
    """Pick one of the five-minute marks of a working day, 07:00 to 18:55, on the asked side of the hold-out."""
    while True:
        minute = rng.choice((0, 15, 30, 45)) if rng.random() < 0.4 else rng.randrange(0, 60, 5)
        time = f"{rng.randint(7, 18):02}:{minute:02}"
        if is_held_out(time) == held_out:
            return time


def write_time(rng: random.Random, time: str) -> str:
    """Write a time with am or pm, by the 24-hour clock, or in words (which mean the working day, 7:00 to 18:59)."""
    hour, minute = int(time[:2]), int(time[3:])
    half_day = "am" if hour < 12 else "pm"
    clock = (hour - 1) % 12 + 1
    following = hour % 12 + 1
    manner = rng.random()
    if manner < 0.3:
        return rng.choice((time, time, f"{hour}:{minute:02}", f"{hour}h{minute:02}", f"{hour}.{minute:02}"))
    if manner < 0.7:
        suffix = rng.choice((f" {half_day}", half_day, f" {half_day[0]}.m.", f" {half_day.upper()}"))
        if minute == 0 and rng.random() < 0.6:
            return f"{clock}{suffix}"
        return f"{clock}{rng.choice((':', ':', '.'))}{minute:02}{suffix}"
    if minute == 0:
        if hour == 12 and rng.random() < 0.5:
            return "noon"
        return rng.choice((f"{ONES[clock]} o'clock", f"{clock} o'clock"))
    name = rng.random() < 0.85
    if minute <= 30:
        past = {15: "quarter", 30: "half"}.get(minute) or number_in_words(minute)
        return f"{past} past {ONES[clock] if name else clock}"
    left = "quarter" if minute == 45 else number_in_words(60 - minute)
    return f"{left} to {ONES[following] if name else following}"
