"""Reports which clients, on which nodes, a run has been waiting for unusually long, if no deadline bounds the wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from fedloom.core.clock import Clock
from fedloom.core.events import Event, Notice
from fedloom.server.fleet.open_exchange import Holding, OpenExchange

FIRST_S = 60.0
"""Seconds a node works on a group before the first notice; a group that takes as long in most rounds is no news."""
UNUSUAL = 2.0
"""A group is waited for unusually long if no other of the run has taken more than one over this."""
RARER = 4.0
"""Factor between the lengths of a wait at two notices."""
_MOST_NAMED = 5


class LongWaits:
    """One run's notices of long waits: a first one, then more rarely, and one when the wait is over.

    Args:
        run_id: the run.
        emit: takes the notices.
        clock: for how long it has been.
    """

    def __init__(self, run_id: str, emit: Callable[[Event], None], clock: Clock) -> None:
        self._run_id, self._emit, self._clock = run_id, emit, clock
        self._holdings: Mapping[int, Holding] = {}
        self._longest_s = 0.0
        self._next_s = FIRST_S
        self._said = False

    def look(self, opened: OpenExchange, holdings: Mapping[int, Holding]) -> None:
        """Report unusually long waits, from the nodes of the exchange's groups and since when (monotonic seconds)."""
        now = self._clock.monotonic()
        for index in self._holdings.keys() - holdings.keys():
            self._longest_s = max(self._longest_s, now - self._holdings[index].since)
        self._holdings = holdings
        slow = [index for index, each in sorted(holdings.items()) if now - each.since >= self._patience_s]
        if not slow:
            self._over()
            return
        waited_s = max(now - holdings[index].since for index in slow)
        if self._said and waited_s < self._next_s:
            return
        self._said, self._next_s = True, waited_s * RARER
        text = self._text(opened, {index: holdings[index] for index in slow}, now)
        self._emit(Notice(run_id=self._run_id, message=text, waits_for=text))

    def closed(self) -> None:
        """Note the end of the exchange."""
        self._holdings = {}
        self._over()

    @property
    def _patience_s(self) -> float:
        return max(FIRST_S, UNUSUAL * self._longest_s)

    def _over(self) -> None:
        if self._said:
            self._emit(Notice(run_id=self._run_id, message="the clients waited for have answered", waits_for=""))
        self._said, self._next_s = False, FIRST_S

    def _text(self, opened: OpenExchange, slow: Mapping[int, Holding], now: float) -> str:
        jobs = [job for index in slow for job in opened.groups[index].jobs]
        named = [_of_group(opened, index, each, now) for index, each in list(slow.items())[:_MOST_NAMED]]
        more = f", and {len(slow) - _MOST_NAMED} groups more" if len(slow) > _MOST_NAMED else ""
        setting = "evaluation.deadline_s" if all(job.kind == "evaluate" for job in jobs) else "round.deadline_s"
        began = self._clock.time() - max(now - each.since for each in slow.values())
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(began))
        return (
            f"round {opened.round} waits since {since} for {', '.join(named)}{more}. No deadline bounds this: the run "
            "waits until they answer or their nodes disconnect. To close rounds without such clients, set "
            f"{setting} (seconds) and round.quorum_fraction below 1 when starting a run"
        )


def _of_group(opened: OpenExchange, index: int, holding: Holding, now: float) -> str:
    """Return a group's clients, or parts, with their node, in words."""
    jobs = opened.groups[index].jobs
    numbers = ", ".join(str(job.client) for job in jobs[:_MOST_NAMED]) + (" …" if len(jobs) > _MOST_NAMED else "")
    what = "client" if all(job.of_client for job in jobs) else "part"
    one_of = f"{what} {numbers}" if len(jobs) == 1 else f"one of {what}s {numbers}"
    return f"{one_of} ({jobs[0].kind}) on node {holding.node!r}, {now - holding.since:.0f} s so far"
