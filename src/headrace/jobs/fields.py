"""Faults in the fields of a request or a row, and their errors."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from headrace.errors import RequestError


def check_keys(fields: Mapping[str, Any], *, known: Collection[str], where: str) -> None:
    """Refuses keys that are not `known`, all at once.

    Raises:
        RequestError: code `unknown_parameter`; `param` is the first of them.
    """
    unknown = [key for key in fields if key not in known]
    if unknown:
        named = ", ".join(_with_nearest(key, known) for key in unknown)
        plural = "s" if len(unknown) > 1 else ""
        refuse(unknown[0], f"unknown key{plural} in {where}: {named}", code="unknown_parameter")


def refuse(param: str, message: str, *, code: str) -> NoReturn:
    """Raises the `RequestError` of one field."""
    raise RequestError(message, code=code, param=param)


def show(value: object) -> str:
    """`value` as JSON, shortened to what fits a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _with_nearest(key: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    return f"{key!r} (did you mean {nearest[0]!r}?)" if nearest else repr(key)
