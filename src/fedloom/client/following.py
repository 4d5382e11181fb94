"""Follows a run on a server to its end, over broken connections and restarts of the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from fedloom.client.control import RunRow
from fedloom.core.errors import NotFound, ServerUnreachable
from fedloom.core.events import ClientsDone, RunFinished
from fedloom.core.records import JsonObject

PATIENCE_S = 600.0
"""Seconds without a response of the server after which following ends."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 10.0


class Watched(Protocol):
    """A server with runs."""

    def watch(self, run_id: str) -> Iterator[JsonObject]:
        """Yield a run's events from its first on; ends with the run, or with the server."""

    def runs(self) -> Sequence[RunRow]:
        """Return the caller's runs."""


class Follower:
    """Follows one run.

    Args:
        server: where it is.
        run_id: the run's.
        say: takes sentences for the user.
        sleep: pauses; for tests.
        clock: seconds that pass; for tests.
    """

    def __init__(
        self,
        server: Watched,
        run_id: str,
        say: Callable[[str], None],
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server, self._run_id, self._say, self._sleep, self._clock = server, run_id, say, sleep, clock
        self._seen = 0
        """Events yielded, of those that the run stores."""
        self._finish: JsonObject | None = None
        """The last event, if it is the end of a session."""
        self.row: RunRow | None = None
        """How the run ended, as the server lists it."""

    def events(self) -> Iterator[JsonObject]:
        """Yield each event once, until the run has ended; a session that the next server resumes is no end.

        Raises:
            ServerUnreachable: no response for `PATIENCE_S`; the run may be running.
            NotFound: the run was deleted.
        """
        pause, heard = FIRST_PAUSE_S, self._clock()
        reported = False
        while True:
            try:
                for event in self._fresh():
                    pause, heard, reported = FIRST_PAUSE_S, self._clock(), False
                    yield event
                if self._has_ended():
                    yield from [self._finish] if self._finish is not None else []
                    return
                pause, heard = FIRST_PAUSE_S, self._clock()
            except ServerUnreachable as exc:
                if self._clock() - heard > PATIENCE_S:
                    raise
                if not reported:
                    self._say(f"{exc}. Trying again; the run does not depend on this command")
                    reported = True
                pause = min(2 * pause, LAST_PAUSE_S)
            self._sleep(pause)

    def _fresh(self) -> Iterator[JsonObject]:
        index = 0
        for event in self._server.watch(self._run_id):
            if event["event"] != ClientsDone.__name__:
                index += 1
                if index <= self._seen:
                    continue
                self._seen = index
            self._finish = event if event["event"] == RunFinished.__name__ else None
            if self._finish is None:
                yield event

    def _has_ended(self) -> bool:
        self.row = next((row for row in self._server.runs() if row.run_id == self._run_id), None)
        if self.row is None:
            raise NotFound(f"run {self._run_id!r} is no longer on the server: it was deleted")
        return self.row.status not in ("queued", "running")
