"""The time that a search has: how much is left, and an end to what would take longer."""

from __future__ import annotations

import contextlib
import contextvars
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

AGAIN_S = 0.5  # an alarm that fell into code which swallows exceptions rings again after this


class TimeIsUp(BaseException):
    """The search's time has come to its end. No `Exception`: whatever is at work must not take it for a failure."""


_BEGAN: contextvars.ContextVar[float | None] = contextvars.ContextVar("began", default=None)


@contextlib.contextmanager
def begun(moment: float) -> Iterator[None]:
    """Count the time of a search in this block from an earlier moment of `time.time`: a command's imports take seconds."""
    token = _BEGAN.set(moment)
    try:
        yield
    finally:
        _BEGAN.reset(token)


@dataclass(frozen=True)
class Clock:
    """When the search began and when it must be over, in seconds of `time.time` (which other machines have, too)."""

    began: float
    ends: float

    @classmethod
    def of(cls, minutes: float) -> Clock:
        began = _BEGAN.get() or time.time()
        return cls(began, began + 60 * minutes)

    @property
    def total(self) -> float:
        return self.ends - self.began

    @property
    def elapsed(self) -> float:
        return time.time() - self.began

    @property
    def left(self) -> float:
        return self.ends - time.time()


@contextlib.contextmanager
def ending_at(moment: float) -> Iterator[None]:
    """Run a block that ends with `TimeIsUp` at a moment of `time.time`, whatever it is doing then.

    Outside the main thread, and where the system has no alarms, the block runs to its own end.
    """
    left = moment - time.time()
    if left <= 0:
        raise TimeIsUp
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, left, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def words(seconds: float) -> str:
    """A time as a person says it.

    >>> words(42.3), words(130)
    ('42 s', '2 min 10 s')
    """
    seconds = max(0, round(seconds))
    return f"{seconds} s" if seconds < 90 else f"{seconds // 60} min {seconds % 60} s"
