"""A coordinator's thread that notices silent agents, ends graces, and repeats messages."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fedloom.server.fleet.sessions import AgentSessions, FleetParts

STUCK_S = 5.0
"""Seconds an agent may continue cancelled work while groups wait that no other one can do."""


class Housekeeper:
    """Looks after the agents four times in a heartbeat's interval, until the sessions are closed.

    Args:
        sessions: of the agents.
        parts: shared with the sessions.
        heartbeat_s: seconds between an agent's heartbeats.
        lost_after_s: seconds of silence after which an attached agent counts as disconnected.
        on_stuck: called with an agent that is busy with cancelled work while groups wait that no other one can do.
    """

    def __init__(
        self,
        sessions: AgentSessions,
        parts: FleetParts,
        *,
        heartbeat_s: float,
        lost_after_s: float,
        on_stuck: Callable[[str], None],
    ) -> None:
        self._sessions, self._parts, self._on_stuck = sessions, parts, on_stuck
        self._interval_s, self._lost_after_s = heartbeat_s / 4, lost_after_s
        self.on_silent: Callable[[str], None] = lambda node: None
        """Called with an agent that counts as disconnected because it is silent."""
        self._thread = threading.Thread(target=self._work, name="fedloom-housekeeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended, which it does once the sessions are closed."""
        self._thread.join()

    def _work(self) -> None:
        nodes, dispatch = self._parts.nodes, self._parts.dispatch
        while True:
            with self._parts.lock:
                if self._parts.clock.wait_for(self._parts.lock, lambda: self._sessions.closed, self._interval_s):
                    return
                nodes.flush()
                dispatch.push_again()
                dispatch.drop_absent()
                for name in nodes.to_reassign():
                    dispatch.requeue(name, "the agent's process ended or its connection broke")
                silent, overflowed, gone = nodes.silent(), nodes.overflowed(), nodes.gone()
                stuck = dispatch.stuck(STUCK_S)
            for name in stuck:
                self._on_stuck(name)
            for name in gone:
                self._parts.payloads.forget(name)
            for name, session in silent:
                self._sessions.detach(name, session, f"no heartbeat for {self._lost_after_s:.0f} s")
                self.on_silent(name)
            for name, session in overflowed:
                self._sessions.detach(name, session, "it does not read its messages")
