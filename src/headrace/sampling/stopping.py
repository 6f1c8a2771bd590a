"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until a stop string, of which nothing is passed on.

    The stop string that is complete first wins, and the longest of those complete at the same character; so the result
    does not depend on where the pieces are cut.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._max_held = max(map(len, stop), default=1) - 1
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """Takes the next piece; returns the text that can be passed on, and the stop string that was found, if any.

        Text that may be the start of a stop string is held back. Nothing may be pushed after a stop string.
        """
        if not self._stop:
            return piece, None
        text = self._held + piece
        # (end, start, stop) of the first place of each
        found = [(text.index(stop) + len(stop), text.index(stop), stop) for stop in self._stop if stop in text]
        if found:
            _, start, stop = min(found)
            self._held = ""
            return text[:start], stop
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held], None

    def flush(self) -> str:
        """Returns the text that was held back, as nothing comes after it."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        for length in range(min(self._max_held, len(text)), 0, -1):
            if text.endswith(tuple(stop[:length] for stop in self._stop if len(stop) > length)):
                return length
        return 0
