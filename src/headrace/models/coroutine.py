"""The one file with greenlets: a micro-batch's forward as a coroutine that waits wherever it needs bytes.

The model's own unmodified `forward` runs inside the greenlet, so code between layers keeps working in every
architecture. Greenlets of one thread share its torch modes: only the driver may enter one, or code that cannot wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from headrace.schedule.steps import Point

C = TypeVar("C")
R = TypeVar("R")


class Coroutine(Generic[C, R]):
    """One micro-batch on its way through the model.

    Attributes:
        context: what the code inside finds as `current_context()`.
        waits_at: the point at which it is suspended; None once it has ended.
    """

    def __init__(self, context: C, forward: Callable[[C], R]) -> None:
        """Runs `forward(context)` up to its first suspension.

        Raises:
            Exception: whatever `forward` raises before it suspends.
        """
        self.context = context
        self.waits_at: Point | None = None
        self._result: list[R] = []
        self._greenlet = _Frame(context, lambda: self._result.append(forward(context)))
        self._switch()

    def resume(self) -> None:
        """Runs up to the next suspension or the end; what `forward` raises is raised here."""
        assert self.waits_at is not None, "the coroutine has ended"
        self._switch()

    def cancel(self) -> None:
        """Unwinds the frames of a suspended forward; does nothing to one that has ended."""
        self.waits_at = None
        if not self._greenlet.dead:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw(GreenletExit)
        assert self._greenlet.dead, "a forward must not survive its cancellation"

    @property
    def result(self) -> R:
        """What `forward` returned; only after it has ended."""
        return self._result[0]

    def _switch(self) -> None:
        self._greenlet.parent = getcurrent()
        self.waits_at = None
        point = self._greenlet.switch()
        if not self._greenlet.dead:
            assert isinstance(point, Point)
            self.waits_at = point


class _Frame(greenlet):
    def __init__(self, context: object, run: Callable[[], object]) -> None:
        super().__init__(run)
        self.context = context


def current_context() -> object:
    """Returns the context of the coroutine that this code runs in."""
    frame = getcurrent()
    assert isinstance(frame, _Frame), "engine code of a model runs only inside a coroutine"
    return frame.context


@contextmanager
def acting_for(context: object) -> Iterator[None]:
    """Code of this coroutine finds `context` as the current one meanwhile."""
    frame = getcurrent()
    assert isinstance(frame, _Frame)
    own, frame.context = frame.context, context
    try:
        yield
    finally:
        frame.context = own


def suspend(point: Point) -> None:
    """Waits at `point` until the driver resumes this coroutine."""
    parent = getcurrent().parent
    assert parent is not None
    parent.switch(point)
