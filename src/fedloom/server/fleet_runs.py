"""Runs of a standing server's queue, done by the agents that are connected to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.core.config import Experiment
from fedloom.core.events import Event
from fedloom.core.history import RunSummary
from fedloom.core.protocols import Sink
from fedloom.core.run_files import ANSWERS
from fedloom.server.access.submitted_code import save_code_here
from fedloom.server.app import Server
from fedloom.server.rounds.run_services import FleetAccess, RuntimeInfo
from fedloom.server.rounds.session import run_session
from fedloom.server.run_views import Owner
from fedloom.server.store.answer_journal import AnswerJournal
from fedloom.server.store.disk_run_store import DiskRunStore


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetRuns:
    """Runs queued experiments on a server's agents."""

    server: Server
    address: str
    """Where the server listens, for the runs' records."""
    sinks: Sequence[Sink]
    """Take every event of every run."""
    shares_code: bool
    """Whether agents of this user on this machine find a run's code here."""
    on_finished: Callable[[Path], None]
    """Called with a run's folder when the run has ended."""

    def run(
        self, store: DiskRunStore, emit: Callable[[Event], None], stop: threading.Event, owner: Owner
    ) -> RunSummary:
        """Run a session of a run, from what it has saved to its end or until `stop` is set.

        Args:
            store: of the run.
            emit: takes its events.
            stop: ends it early.
            owner: who submitted it.
        """
        experiment = store.experiment()
        journal = _journal(store, experiment)
        if self.shares_code:
            save_code_here(experiment)
        with store.claimed():
            outcome = run_session(
                experiment, store, self._access(owner), (*self.sinks, _Relay(emit)), stop=stop, journal=journal
            )
        if store.folder is not None:
            self.on_finished(store.folder)
        return outcome.summary

    def _access(self, owner: Owner) -> FleetAccess:
        """Return the services of the server that a run of this owner uses."""
        coordinator = self.server.coordinator
        return FleetAccess(
            coordinator=coordinator,
            place=lambda: RuntimeInfo(runtime="fleet", workers=coordinator.online, where=f"agents of {self.address}"),
            clock=self.server.clock,
            submitter=(owner.name, owner.role),
            code_names=True,
        )


def _journal(store: DiskRunStore, experiment: Experiment) -> AnswerJournal | None:
    """Return the journal of a run's accepted answers; None if its experiment has none."""
    if store.folder is None or not experiment.checkpoint.answers:
        return None
    return AnswerJournal(store.folder / ANSWERS, store.run_id, experiment.to_dict())


class _Relay:
    """A sink that hands events to a function."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit

    def write(self, event: Event) -> None:
        self._emit(event)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""
