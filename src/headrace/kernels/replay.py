"""Calls `headrace_replay`: calls that were noted, made again with other addresses and no Python between them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, addressof, byref, c_int64, c_void_p, cast
from typing import NamedTuple

from headrace.kernels.calls import Call


class Move(NamedTuple):
    """An address within a call that is not the same each time.

    Attributes:
        address: where it lies.
        source: number of the source that it is in.
        offset: in bytes, from where that begins.
    """

    address: c_void_p
    source: int
    offset: int


class _Move(Structure):
    """`headrace::Move` of replay.h."""

    _fields_ = (("address", c_void_p), ("source", c_int64), ("offset", c_int64))


class _Step(Structure):
    """`headrace::Step` of replay.h."""

    _fields_ = (("function", c_void_p), ("call", c_void_p))


class _Replay(Structure):
    """`headrace::Replay` of replay.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("steps", "moves")),
        *((name, c_int64) for name in ("num_steps", "num_moves")),
        *((name, c_void_p) for name in ("sources", "next")),
    )


class Replay:
    """Calls in their order, and what is to be changed in them."""

    def __init__(self, library: ctypes.CDLL, calls: Sequence[Call], moves: Sequence[Move]) -> None:
        self._calls = calls  # lie where the library finds them
        steps, moved = (_Step * len(calls))(), (_Move * len(moves))()
        for step, call in zip(steps, calls, strict=True):
            step.function, step.call = cast(call.function, c_void_p), addressof(call.argument)  # type: ignore[arg-type]
        for to, move in zip(moved, moves, strict=True):
            to.address, to.source, to.offset = addressof(move.address), move.source, move.offset
        self._sources = (c_int64 * (1 + max(move.source for move in moves)))()
        self._kept = steps, moved
        self._argument = _Replay(
            steps=addressof(steps),
            moves=addressof(moved),
            num_steps=len(steps),
            num_moves=len(moved),
            sources=addressof(self._sources),
        )
        self._address = addressof(self._argument)
        self._function, self._reference = library.headrace_replay, byref(self._argument)

    def prepare(self, sources: Sequence[int], following: Replay | None) -> None:
        """Has `make` make the calls with sources that begin at these addresses, and then those of `following`."""
        self._sources[:] = sources[: len(self._sources)]  # type: ignore[call-overload]
        self._argument.next = None if following is None else following._address

    def make(self) -> None:
        """Makes the calls that were prepared."""
        self._function(self._reference)
