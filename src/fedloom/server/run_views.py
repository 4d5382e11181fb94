"""Values of the run queue: who submitted a run, its progress, how it resumes, and its events for a watcher."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedloom.core.events import RunFinished
from fedloom.core.records import Info


@dataclass(frozen=True, slots=True)
class Owner:
    """The submitter of a run."""

    id: str = ""
    """The member's id, which no later member has; empty on a server without members."""
    name: str = ""
    role: str = ""
    """`user` or `admin`; empty on a server without members."""


NO_OWNER = Owner()
"""The submitter on a server without members."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """How far a run is."""

    status: str
    """`queued`, `running`, `done`, `failed`, `interrupted`, or `deleting`."""
    rounds_done: int
    rounds: int
    """0 for a run without an end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumption:
    """How a run that has ended is resumed."""

    rounds: int | None = None
    """The new number of rounds, counted from the run's first; None leaves it as it is."""
    as_continuation: bool = False
    """Whether to take it though the run depends on its number of rounds."""


UNCHANGED = Resumption()
"""A run resumes unchanged."""


class Events:
    """A watcher's view of a run: an iterator that ends with the run, or when closed."""

    def __init__(self, past: Sequence[Info], finished: bool) -> None:
        self._queue: queue.SimpleQueue[Info | None] = queue.SimpleQueue()
        for event in past:
            self._queue.put(event)
        if finished:
            self._queue.put(None)

    def put(self, event: Info) -> None:
        """Add an event; the run's last one ends the iteration."""
        self._queue.put(event)
        if event["event"] == RunFinished.__name__:
            self._queue.put(None)

    def close(self) -> None:
        """End the iteration now."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Info]:
        while (event := self._queue.get()) is not None:
            yield event
