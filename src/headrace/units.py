"""Bytes, rates and seconds, and the forms in which people write and read them."""

from __future__ import annotations

import re

from headrace.errors import OptionError

KIB, MIB, GIB = 1024, 1024**2, 1024**3

_FACTORS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 10**3,
    "m": MIB, "mib": MIB, "mb": 10**6,
    "g": GIB, "gib": GIB, "gb": 10**9,
    "t": 1024**4, "tib": 1024**4, "tb": 10**12,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Returns the number of bytes that `6GiB`, `500MB`, `2.5g` or `1048576` stands for.

    Single letters are binary (`6G` is `6GiB`), as in docker and systemd.

    Raises:
        OptionError: the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise OptionError(f"not a size: {text!r}; expected something like 6GiB, 500MB or 1048576")
    return int(float(match[1]) * factor)


def parse_rate(text: str) -> int:
    """Returns the bytes per second that `1GB/s` or `500MiB/s` stands for.

    Raises:
        OptionError: the text is not a rate, or is zero.
    """
    size, slash, unit = text.strip().rpartition("/")
    expected = "expected something like 1GB/s or 500MiB/s"
    if not slash or unit.strip().lower() != "s":
        raise OptionError(f"not a rate: {text!r}; {expected}")
    try:
        rate = parse_bytes(size)
    except OptionError:
        raise OptionError(f"not a rate: {text!r}; {expected}") from None
    if rate < 1:
        raise OptionError(f"a rate of {text!r} lets nothing pass; {expected}")
    return rate


def format_bytes(num_bytes: float) -> str:
    """Returns `num_bytes` as a person reads it: `5.5 GiB`, `12.0 MiB`, `17 B`."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_rate(bytes_per_second: float) -> str:
    """Returns a rate as a person reads it, in the powers of ten that disks and memory are sold by: `1.50 GB/s`."""
    rate = float(bytes_per_second)
    for unit in ("B/s", "kB/s", "MB/s"):
        if abs(rate) < 999.5:
            return f"{rate:.0f} {unit}"
        rate /= 1000
    return f"{rate:.2f} GB/s"


def format_seconds(seconds: float) -> str:
    """Returns a duration as a person reads it: `850 ms`, `12.3 s`, `4 min 05 s`, `7 h 12 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
