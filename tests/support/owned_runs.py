"""Runs of a server and their owners: real rounds in this process, and a user's connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from members import Members

from fedloom.client.control import ControlClient
from fedloom.client.download import Download, RemoteFile
from fedloom.client.results import ResultsClient
from fedloom.core.errors import RunFailed
from fedloom.core.events import Event, RoundFinished
from fedloom.core.history import RunSummary
from fedloom.core.identity import Identity
from fedloom.local_session import run_on_own_agents
from fedloom.reporting import write_report
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.fleet import wait_until

PENDING = ("queued", "running")


class _Relay:
    def __init__(self, emit: Callable[[Event], None], look: Callable[[Event], None]) -> None:
        self._emit, self._look = emit, look

    def write(self, event: Event) -> None:
        self._emit(event)
        self._look(event)

    def close(self) -> None:
        """Do nothing."""


class RunsHere:
    """Does runs with inline agents; pauses after a round if told to."""

    def __init__(self) -> None:
        self.pause_after: int | None = None
        self.fails = False
        """Whether runs fail before anything is done."""
        self.paused, self.go = threading.Event(), threading.Event()

    def __call__(self, store: DiskRunStore, emit: Callable[[Event], None], stop: threading.Event) -> RunSummary:
        def look(event: Event) -> None:
            if isinstance(event, RoundFinished) and event.record.round == self.pause_after:
                self.paused.set()
                assert self.go.wait(60)

        if self.fails:
            raise RunFailed("this run fails at once")
        experiment = store.experiment().override(["runtime.name=inline"])
        with store.claimed():
            outcome = run_on_own_agents(experiment, store, [_Relay(emit, look)])
        if store.folder is not None:
            write_report(store.folder)
        return outcome.summary


class Owner:
    """A user, or an administrator, with a connection of each kind."""

    def __init__(self, fleet: Members, identity: Identity) -> None:
        self.identity = identity
        self.control = ControlClient(fleet.address, identity=identity)
        self.results = ResultsClient(fleet.address, identity=identity)

    def ended(self, run_id: str) -> str:
        return wait_until(
            lambda: next(
                (row.status for row in self.control.runs() if row.run_id == run_id and row.status not in PENDING), ""
            ),
            60,
            "the end of the run",
        )

    def fetched(self, run_id: str, folder: Path, *kinds: str) -> list[str]:
        results = self.results

        class Source:
            def files(self) -> tuple[RemoteFile, ...]:
                return results.files(run_id, kinds).files

            def fetch(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
                return results.fetch(run_id, file, offset)

        return [str(path.relative_to(folder)) for path in Download(Source(), run_id, folder, print).all()]

    def close(self) -> None:
        self.control.close()
        self.results.close()
