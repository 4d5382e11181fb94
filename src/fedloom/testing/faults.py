"""Channels between an agent and its server: one that forwards everything, and one with faults."""

from __future__ import annotations

import heapq
import itertools
import time

from fedloom.core.errors import ServerUnreachable
from fedloom.core.messages import Channel, FromAgent, Hello, PayloadRef, ToAgent, Welcome
from fedloom.core.records import Groups, Record
from fedloom.core.seeds import generator


class ForwardingChannel:
    """Any channel, unchanged: a base class for fakes, which override some methods.

    Args:
        inner: the channel that does the work.
    """

    def __init__(self, inner: Channel) -> None:
        self.inner = inner

    def open(self, hello: Hello) -> Welcome:
        """Connect, or connect again."""
        return self.inner.open(hello)

    def send(self, message: FromAgent) -> None:
        """Send a message to the server."""
        self.inner.send(message)

    def receive(self, timeout_s: float) -> ToAgent | None:
        """Return the next message of the server, or None after `timeout_s` seconds without one."""
        return self.inner.receive(timeout_s)

    def fetch(self, ref: PayloadRef) -> Record:
        """Return the record behind a reference."""
        return self.inner.fetch(ref)

    def store(self, record: Record, run_id: str) -> PayloadRef:
        """Store a run's record for the server."""
        return self.inner.store(record, run_id)

    def lease(self, record: Record, run_id: str) -> Groups:
        """Return writable arrays shaped like the record's."""
        return self.inner.lease(record, run_id)

    def recycle(self, run_id: str) -> None:
        """Reuse the memory leased or stored for the run so far."""
        self.inner.recycle(run_id)

    def close(self) -> None:
        """Close the connection."""
        self.inner.close()


class FaultyChannel(ForwardingChannel):
    """Any channel, with faults in both directions, the same for the same seed and messages.

    Args:
        inner: the channel that does the work.
        seed: of the faults.
        drop, duplicate, delay, cut: probability of each, per message; a cut makes the connection fail.
        delay_s: the longest delay; seconds. Delayed messages overtake each other.
    """

    def __init__(
        self,
        inner: Channel,
        seed: int,
        *,
        drop: float = 0.0,
        duplicate: float = 0.0,
        delay: float = 0.0,
        cut: float = 0.0,
        delay_s: float = 0.05,
    ) -> None:
        super().__init__(inner)
        self._rng = generator(seed, "faults")
        self._drop, self._duplicate, self._delay, self._cut, self._delay_s = drop, duplicate, delay, cut, delay_s
        self._late: list[tuple[float, int, ToAgent]] = []
        self._counter = itertools.count()
        self.faults = {"dropped": 0, "duplicated": 0, "delayed": 0, "cut": 0}
        """Count of each fault that has occurred."""

    def open(self, hello: Hello) -> Welcome:
        self._late.clear()
        return self.inner.open(hello)

    def send(self, message: FromAgent) -> None:
        for _ in range(self._copies()):
            if self._chance(self._delay, "delayed"):
                time.sleep(float(self._rng.random()) * self._delay_s)
            self.inner.send(message)

    def receive(self, timeout_s: float) -> ToAgent | None:
        if self._chance(self._cut, "cut"):
            raise ServerUnreachable("the connection was cut on purpose")
        end = time.monotonic() + timeout_s
        while True:
            if self._late and self._late[0][0] <= time.monotonic():
                return heapq.heappop(self._late)[2]
            next_late = self._late[0][0] - time.monotonic() if self._late else timeout_s
            message = self.inner.receive(max(0.0, min(next_late, end - time.monotonic())))
            if message is not None:
                for _ in range(self._copies()):
                    wait = float(self._rng.random()) * self._delay_s if self._chance(self._delay, "delayed") else 0.0
                    heapq.heappush(self._late, (time.monotonic() + wait, next(self._counter), message))
            elif time.monotonic() >= end:
                return None

    def _copies(self) -> int:
        if self._chance(self._drop, "dropped"):
            return 0
        return 2 if self._chance(self._duplicate, "duplicated") else 1

    def _chance(self, probability: float, what: str) -> bool:
        happens = bool(self._rng.random() < probability)
        self.faults[what] += happens
        return happens
