"""Reports what a run lacks while it waits for nodes rather than for results."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedloom.core.clock import Clock
from fedloom.core.events import Event, Notice

PATIENCE_S = 3.0
"""Seconds a run waits before it says so."""


class WaitNotices:
    """One run's notices of waiting: one when it begins to wait, for each reason, and one when it waits no more.

    Args:
        run_id: the run.
        work: what is to be done, for the message, such as the workload.
        emit: takes the notices.
        clock: for how long it has been.
    """

    def __init__(self, run_id: str, work: str, emit: Callable[[Event], None], clock: Clock) -> None:
        self._run_id, self._work, self._emit, self._clock = run_id, work, emit, clock
        self._since: float | None = None
        self._said = ""

    def look(self, lacking: str) -> None:
        """Report what the run lacks now, in words; empty if nothing."""
        now = self._clock.monotonic()
        if not lacking:
            self.over()
            return
        if self._since is None:
            self._since = now
        kind = lacking.partition(" (")[0]
        if now - self._since < PATIENCE_S or kind == self._said:
            return
        self._said = kind
        began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._clock.time() - (now - self._since)))
        waits_for = f"waits since {began}: {lacking}; {self._work}"
        self._emit(Notice(run_id=self._run_id, message=waits_for, waits_for=waits_for))

    def over(self) -> None:
        """Report the end of a reported wait."""
        if self._said and self._since is not None:
            waited_s = self._clock.monotonic() - self._since
            self._emit(Notice(run_id=self._run_id, message=f"waited {waited_s:.0f} s; continues", waits_for=""))
        self._since, self._said = None, ""
