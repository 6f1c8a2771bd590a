"""A thread that does one job after another, in the order in which they came."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class JobThread:
    """Jobs must not raise. `close` does those that were put, and ends the thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Has `job` done after all that were put before."""
        self._jobs.put(job)

    def close(self) -> None:
        """Returns when all jobs are done; a second call does nothing."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or its memory would be held until the next one comes
