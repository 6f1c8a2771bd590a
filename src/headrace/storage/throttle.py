"""A limit on a rate of bytes, for tests, simulated devices, and to be a good neighbour. Any number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Throttle:
    """Lets bytes pass at `bytes_per_second` at most, over all threads together."""

    def __init__(
        self,
        bytes_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def pass_bytes(self, num_bytes: int) -> None:
        """Returns when `num_bytes`, begun now, would have passed at the limit."""
        with self._lock:
            self._free_at = max(self._free_at, self._clock()) + num_bytes / self.bytes_per_second
            free_at = self._free_at
        if (remaining := free_at - self._clock()) > 0:
            self._sleep(remaining)
