"""Time as the platform sees it: one clock, made once and passed down, so that a test can bring its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Reads the time and waits."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment; never goes back. For durations and deadlines."""

    def time(self) -> float:
        """Return seconds since 1970-01-01 UTC. For what people and files read."""

    def get(self, source: queue.SimpleQueue[T], timeout_s: float) -> T:
        """Return the next item, waiting at most `timeout_s` seconds for it.

        Raises:
            queue.Empty: nothing arrived in time.
        """

    def overslept_s(self, since: float, wait_s: float) -> float:
        """Return how many seconds a wait that began at `since` (monotonic) has taken besides its `wait_s` seconds.

        More than a moment means that the process, or the machine, stood still.
        """

    def wait_for(self, condition: threading.Condition, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until the predicate is true, at most `timeout_s` seconds; returns its value. The condition is held."""


class SystemClock:
    """The machine's own clock."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def get(self, source: queue.SimpleQueue[T], timeout_s: float) -> T:
        return source.get(timeout=timeout_s)

    def overslept_s(self, since: float, wait_s: float) -> float:
        return max(0.0, time.monotonic() - since - wait_s)

    def wait_for(self, condition: threading.Condition, predicate: Callable[[], bool], timeout_s: float) -> bool:
        return condition.wait_for(predicate, timeout_s)


SYSTEM_CLOCK = SystemClock()
"""Default clock."""
