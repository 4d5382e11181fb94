"""A clock that a test advances."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LOOK_S = 0.002


class ManualClock:
    """A `core.clock.Clock` whose time moves only by `advance`; waiting threads check it every few real milliseconds.

    Args:
        now: the initial time; seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._still_s = 0.0

    def stand_still(self, seconds: float) -> None:
        """Advance time as if everything that uses this clock had stood still meanwhile."""
        self._still_s += seconds
        self._now += seconds

    def advance(self, seconds: float) -> None:
        """Advance time for everything that uses this clock."""
        self._now += seconds

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now

    def get(self, source: queue.SimpleQueue[T], timeout_s: float) -> T:
        end = self._now + timeout_s
        while self._now < end:
            try:
                return source.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
        return source.get_nowait()

    def overslept_s(self, since: float, wait_s: float) -> float:
        still_s, self._still_s = self._still_s, 0.0
        return still_s

    def wait_for(self, condition: threading.Condition, predicate: Callable[[], bool], timeout_s: float) -> bool:
        end = self._now + timeout_s
        while not predicate() and self._now < end:
            condition.wait(_LOOK_S)
        return predicate()
