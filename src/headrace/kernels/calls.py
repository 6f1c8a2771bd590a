"""Calls of the C++ library's functions, which somebody may note in order to make them again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import Structure, byref
from typing import NamedTuple

Function = Callable[[object], object]


class Call(NamedTuple):
    """What was called: a function of the library, with its one argument."""

    function: Function
    argument: Structure


class _Notes(threading.local):
    calls: list[Call] | None = None


_notes = _Notes()


def make(function: Function, argument: Structure) -> None:
    """Calls a function of the library."""
    function(byref(argument))
    if _notes.calls is not None:
        _notes.calls.append(Call(function, argument))


@contextmanager
def noted() -> Iterator[list[Call]]:
    """Notes the calls that this thread makes meanwhile, in their order; not to be entered twice."""
    calls: list[Call] = []
    _notes.calls = calls
    try:
        yield calls
    finally:
        _notes.calls = None
