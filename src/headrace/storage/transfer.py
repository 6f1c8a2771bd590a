"""A copy between tiers as a future: begun now, awaited by whoever needs the bytes, with an error of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Transfer:
    """Bytes that are on their way in `num_parts` parts, by any number of threads."""

    def __init__(self, what: str, num_parts: int) -> None:
        """Begins; a transfer of no parts is complete at once.

        Args:
            what: for messages and traces, such as `layer 7`.
        """
        self.what = what
        self._missing = num_parts
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._complete = threading.Event()
        if not num_parts:
            self._complete.set()

    @property
    def is_complete(self) -> bool:
        """Whether all parts have arrived or failed."""
        return self._complete.is_set()

    def finish_part(self, error: Exception | None = None) -> None:
        """Notes that one part has arrived, or failed with `error`; the first error is the one that is raised."""
        with self._lock:
            self._error = self._error or error
            self._missing -= 1
            if not self._missing:
                self._complete.set()

    def carry_out(
        self, work: Callable[[], None], *, after: Transfer | None = None, release: Callable[[], None] = lambda: None
    ) -> None:
        """Runs `work`, which brings one part, once `after` is complete; the error of either is the part's.

        `release` is called, whatever happens, when neither touches its memory any more.
        """
        error: Exception | None = None
        try:
            if after is not None:
                after.wait()
            work()
        except Exception as raised:  # whoever waits for the transfer gets it
            error = raised
        release()
        self.finish_part(error)

    def settle(self) -> None:
        """Returns once nothing writes into the target any more, whatever became of the parts."""
        self._complete.wait()

    def wait(self) -> None:
        """Returns once every part has arrived; nothing writes into the target any more, even where this raises.

        Raises:
            Exception: the first error of any part.
        """
        self.settle()
        if self._error is not None:
            raise self._error
