"""Waits for an exchange's results: until one arrives, the deadline passes, the run is stopped, or no agent is left."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping

from fedloom.core.errors import FedloomError, Interrupted, NoCapacity
from fedloom.server.fleet.open_exchange import Answer, OpenExchange
from fedloom.server.rounds.closing import Closing
from fedloom.server.rounds.long_waits import LongWaits
from fedloom.server.rounds.run_services import FleetAccess
from fedloom.server.rounds.wait_notices import WaitNotices

_log = logging.getLogger(__name__)
_TICK_S = 0.5
"""Seconds between a waiting run's checks whether it was stopped; results wake it immediately."""
_STOOD_STILL_S = 2.0
"""A wait that ends so many seconds late means that the process stood still: results on their way could not arrive."""
_STARTING_S = 10.0
"""Seconds that the workers of a runtime may take to start before a run says what it waits for."""


class Waiting:
    """One run's way of waiting.

    Args:
        fleet: the way to the agents.
        stop: when set, waiting ends with `Interrupted`.
        how_to_resume: for that error's message.
        notices: says which nodes the run lacks.
        long_waits: says which clients the run waits for.
    """

    def __init__(
        self,
        fleet: FleetAccess,
        stop: threading.Event,
        how_to_resume: str,
        notices: WaitNotices,
        long_waits: LongWaits,
    ) -> None:
        self._fleet, self._stop, self._how_to_resume, self._notices = fleet, stop, how_to_resume, notices
        self._long_waits = long_waits
        self._looked = -math.inf
        """When the nodes were last looked at (monotonic seconds); at the start of each exchange at once."""

    def for_nodes(self, count: int, labels: Mapping[str, str]) -> None:
        """Return once this many nodes with these labels are connected; raises as `until_none`."""
        wanted = "".join(f" with {key}={value}" for key, value in sorted(labels.items()))

        def lacking() -> str:
            found = self._fleet.coordinator.count_fitting(labels)
            return "" if found >= count else f"{count} nodes{wanted} are wanted (fleet.min_nodes) ({found} connected)"

        self.until_none(lacking)

    def until_none(self, lacking: Callable[[], str], limit_s: float | None = None) -> None:
        """Return once nothing is lacking, or after `limit_s` seconds.

        Args:
            lacking: says what is lacking, in words; empty for nothing.
            limit_s: None for no limit.

        Raises:
            Interrupted: the run was stopped.
        """
        begun = self._fleet.clock.monotonic()
        while found := lacking():
            if self._stop.is_set():
                raise Interrupted(self._how_to_resume)
            if limit_s is not None and self._fleet.clock.monotonic() - begun >= limit_s:
                break
            self._notices.look(found)
            self._stop.wait(_TICK_S)
        self._notices.over()

    def next(self, opened: OpenExchange, closing: Closing, each_turn: Callable[[], None]) -> Answer | None:
        """Return the next result; None once the deadline has passed.

        Args:
            opened: the exchange.
            closing: knows the deadline.
            each_turn: called before each check for a result.

        Raises:
            Interrupted: the run was stopped.
            NoCapacity: no agent has been connected for too long.
            FedloomError: why the groups could not be assigned.
        """
        clock = self._fleet.clock
        alone_since = clock.monotonic()
        while True:
            if self._stop.is_set():
                raise Interrupted(self._how_to_resume)
            each_turn()
            with contextlib.suppress(queue.Empty):
                return self._answered(opened.answers.get_nowait())
            remaining_s = closing.remaining_s()
            if remaining_s is not None and remaining_s <= 0:
                return None
            if self._fleet.pump is not None:
                self._fleet.pump()
                continue
            if clock.monotonic() - self._looked >= _TICK_S:  # it takes time for every node
                is_first, self._looked = self._looked == -math.inf, clock.monotonic()
                if self._fleet.coordinator.online:
                    alone_since = clock.monotonic()
                self._look(opened, clock.monotonic() - alone_since)
                if remaining_s is None and not is_first:
                    self._long_waits.look(opened, self._fleet.coordinator.holdings(opened))
            self._check_agents(opened, clock.monotonic() - alone_since)
            wait_s = _TICK_S if remaining_s is None else min(_TICK_S, max(0.001, remaining_s))
            asked = clock.monotonic()
            with contextlib.suppress(queue.Empty):
                return self._answered(clock.get(opened.answers, wait_s))
            if (late_s := clock.overslept_s(asked, wait_s)) > _STOOD_STILL_S:
                _log.warning("this process stood still for %.0f s; deadlines are that much later", late_s)
                closing.postpone(late_s)

    def closed(self) -> None:
        """Note the end of an exchange."""
        self._looked = -math.inf
        self._long_waits.closed()

    def _answered(self, answer: Answer | FedloomError) -> Answer:
        """Return the answer; raise the error that prevented the groups' assignment."""
        self._notices.over()
        if isinstance(answer, FedloomError):
            raise answer
        return answer

    def _look(self, opened: OpenExchange, alone_s: float) -> None:
        """Report what the run lacks; `alone_s` is how long no agent has been connected, as workers that start take."""
        coordinator = self._fleet.coordinator
        if self._fleet.patience_s is None or coordinator.online:
            self._notices.look(coordinator.waits_for(opened))
        elif alone_s > _STARTING_S:
            self._notices.look(coordinator.explain_absence())

    def _check_agents(self, opened: OpenExchange, alone_s: float) -> None:
        """Raise if waiting is pointless; `alone_s` is how long no agent has been connected."""
        if self._fleet.coordinator.fatal_reason:
            raise NoCapacity(self._fleet.coordinator.fatal_reason)
        if self._fleet.patience_s is not None and alone_s > self._fleet.patience_s:
            why = self._fleet.coordinator.explain_absence()
            raise NoCapacity(
                f"no agent has been connected for {self._fleet.patience_s:.0f} s, so {len(opened.pending)} groups are "
                "waiting. " + (f"The run waits: {why}" if why else "Check why the workers of the runtime ended")
            )
