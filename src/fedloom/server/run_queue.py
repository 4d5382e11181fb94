"""The server's runs: queued, running one after another, watched, stopped, resumed after a restart.

The queue is a SQLite file next to the runs' folders, so a restarted server knows its runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.config import Experiment
from fedloom.core.continuation import check_rounds
from fedloom.core.erased import require_not_erased
from fedloom.core.errors import NotFound, RunExists, RunFailed, StorageFull, UsageError
from fedloom.core.events import Event, Notice, RoundFinished, RunFinished
from fedloom.core.history import RunSummary
from fedloom.core.plugins import check_parts
from fedloom.core.provenance import SubmittedCode, provenance_of_submission
from fedloom.core.records import Info, JsonObject
from fedloom.core.run_files import EXPERIMENT
from fedloom.server.deleted_runs import DeletedRuns, holders_of
from fedloom.server.run_table import DELETING, RunTable
from fedloom.server.run_views import NO_OWNER, UNCHANGED, Events, Owner, Resumption, RunState
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.server.store.run_store import event_json, new_run_id

_log = logging.getLogger(__name__)

ROOM_S = 5.0
"""Seconds between two checks of a full disk."""

RunOne = Callable[[DiskRunStore, Callable[[Event], None], threading.Event], RunSummary]
"""Runs one run from its store: emits events, ends early when the event is set."""


def _lock(folder: Path) -> IO[bytes]:
    """Lock the folder against a second server for as long as the file is open."""
    file = (folder / "lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        file.close()
        raise UsageError(
            f"another server is using the state folder {folder}. Stop it first, or choose another --state"
        ) from exc
    return file


@contextlib.contextmanager
def _logged(run_id: str) -> Iterator[None]:
    """Log that a run cannot be deleted now."""
    try:
        yield
    except RunFailed as exc:
        _log.error("%s", exc, extra={"run": run_id})


@dataclass
class _Running:
    """A running run."""

    stop: threading.Event = field(default_factory=threading.Event)
    ended: bool = False
    waits_for: str = ""
    """What it waits for; empty if it waits for nothing but answers."""


class RunQueue:
    """Runs in order of submission, several at a time, each in a thread.

    Args:
        folder: the server's state: `fedloom.sqlite` and `runs/`. One server at a time.
        run_one: does one run.
        max_concurrent_runs: maximum number of concurrent runs.

    Raises:
        UsageError: another server works on this folder.
    """

    def __init__(
        self, folder: Path, run_one: RunOne, *, max_concurrent_runs: int = 1, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        folder = folder.resolve()
        self._folder, self._run_one, self._clock = folder, run_one, clock
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(folder)
        self._table = RunTable(folder / "fedloom.sqlite")
        self._deleted = DeletedRuns(folder / "fedloom.sqlite", clock.time)
        self.on_deleted: Callable[[str, Collection[str]], None] = lambda run_id, holders: None
        """Called with a run that is being deleted, and the nodes that may have clients' states of it."""
        self._changed = threading.Condition()
        self._watchers: dict[str, list[Events]] = {}
        self._running: dict[str, _Running] = {}
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"fedloom-runs-{n}") for n in range(max_concurrent_runs)
        ]

    @property
    def folder(self) -> Path:
        """Return the server's state folder."""
        return self._folder

    def start(self) -> None:
        """Start the threads that do runs."""
        with self._changed:
            self._table.requeue_running()
            unfinished = self._table.deleting()
        for run_id in unfinished:
            with _logged(run_id):
                self._erase(run_id)
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        values: Info,
        owner: Owner = NO_OWNER,
        admit: Callable[[Experiment], None] = lambda experiment: None,
        code: SubmittedCode | None = None,
    ) -> str:
        """Check an experiment, and the server's parts of it, and queue it; returns the run's id.

        Args:
            values: the experiment.
            owner: who submits it.
            admit: called with what is about to be queued; raises what speaks against it.
            code: what the submitter says of the code it comes from.
        """
        experiment = Experiment.parse(values)
        experiment.for_nodes(code_names=True)  # whatever nodes have to find by its digest is here
        if experiment.workload.objects_key():
            raise UsageError(
                "workload.objects: the model and the data of this experiment are Python objects of another program, "
                'which a server does not take. Name files instead: model = "./net.py:Net" and [workload.data]'
            )
        check_parts(experiment)
        admit(experiment)
        store = self._create(experiment.name)
        store.begin(experiment)
        store.record_provenance(provenance_of_submission(experiment, code))
        with self._changed:
            rounds = experiment.max_rounds or 0
            self._table.add(store.run_id, experiment.name, rounds, self._clock.time(), owner)
            self._changed.notify_all()
        return store.run_id

    def rows(self, owner_id: str | None = None) -> list[JsonObject]:
        """Return every run, or every run of one member, oldest first."""
        with self._changed:
            found = self._table.rows(owner_id)
            waits = {run_id: running.waits_for for run_id, running in self._running.items() if running.waits_for}
        return [{**row, "error": waits.get(row["run_id"], row["error"])} for row in found]

    def owner(self, run_id: str) -> Owner:
        """Return a run's owner."""
        with self._changed:
            return self._table.owner(run_id)

    def state(self, run_id: str) -> RunState:
        """Return how far a run is."""
        with self._changed:
            return self._table.state(run_id)

    def folder_of(self, run_id: str) -> Path:
        """Return a run's folder."""
        with self._changed:
            self._table.status(run_id)
        return self._folder / "runs" / run_id

    def settings_text(self, run_id: str) -> str:
        """Return a run's experiment as it was written down; empty if it cannot be read."""
        try:
            return (self.folder_of(run_id) / EXPERIMENT).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def store(self, run_id: str) -> DiskRunStore:
        """Return what a run has saved."""
        return DiskRunStore.open(self.folder_of(run_id))

    @contextlib.contextmanager
    def watch(self, run_id: str) -> Iterator[Events]:
        """Yield a run's events, past and future."""
        with self._changed:
            status = self._table.status(run_id)
            past = DiskRunStore.open(self._folder / "runs" / run_id).events()
            over = status not in ("queued", "running") or (run_id in self._running and self._running[run_id].ended)
            events = Events(past, finished=over)
            self._watchers.setdefault(run_id, []).append(events)
        try:
            yield events
        finally:
            with self._changed:
                self._watchers[run_id].remove(events)

    def stop(self, run_id: str) -> str:
        """Stop a run; returns the status it had."""
        with self._changed:
            status = self._table.status(run_id)
            if status == "queued":
                self._table.set(run_id, status="interrupted")
                self._end_watches(run_id)
            elif run_id in self._running:
                self._running[run_id].stop.set()
        return status

    def resume(self, run_id: str, wanted: Resumption = UNCHANGED) -> str:
        """Queue a run again that has ended; returns the status it had.

        Raises:
            UsageError: it has not ended, or has nothing left to do.
            ConfigError: it depends on its number of rounds.
        """
        store = self.store(run_id)
        status = self._require_ended(run_id, "resumed")
        require_not_erased(store.folder, f"run {run_id!r}")
        before = store.experiment()
        after = before if wanted.rounds is None else before.override([f"rounds={wanted.rounds}"])
        done = self.state(run_id).rounds_done
        if status == "done" and (after.max_rounds or 0) <= done:
            raise UsageError(
                f"run {run_id!r} is done, with {done} rounds; expected --rounds with more than that, got "
                f"{after.max_rounds}"
            )
        if after.rounds != before.rounds:
            check_rounds(after, done, as_continuation=wanted.as_continuation)
        check_parts(after)
        with self._changed, store.claimed():
            self._require_ended(run_id, "resumed")
            if after != before:
                store.change_experiment(after)
            self._table.set(run_id, status="queued", error="", rounds=after.max_rounds or 0)
            self._changed.notify_all()
        return status

    def delete(self, run_id: str) -> str:
        """Delete a run that has ended, its folder, and clients' states of it on nodes; returns the status it had.

        Raises:
            UsageError: it has not ended.
            RunFailed: the folder cannot be removed; calling again tries again.
        """
        with self._changed:
            status = self._require_ended(run_id, "deleted")
            holders = holders_of(DiskRunStore.open(self._folder / "runs" / run_id)) if status != DELETING else set()
            self._deleted.add(run_id, holders)
            self._table.set(run_id, status=DELETING)
            self._end_watches(run_id)
        self.on_deleted(run_id, holders)
        self._erase(run_id)
        return status

    def deleted_for(self, names: Collection[str]) -> Sequence[str]:
        """Return the deleted runs that a node may have clients' states of, by its name and the member's id."""
        with self._changed:
            return self._deleted.of(names)

    def close(self) -> None:
        """Stop the running runs at their next opportunity, leave the rest queued, and close the database."""
        with self._changed:
            self._closing = True
            for running in self._running.values():
                running.stop.set()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        with self._changed:
            self._table.close()
            self._deleted.close()
        self._lock.close()

    def _create(self, name: str) -> DiskRunStore:
        """Create a folder for a new run: two submitted within a second may draw the same letters."""
        while True:
            run_id = new_run_id(name)
            with contextlib.suppress(RunExists):
                return DiskRunStore.create(self._folder / "runs" / run_id, run_id)

    def _require_ended(self, run_id: str, what: str) -> str:
        """Return the status of a run that is neither queued nor running."""
        with self._changed:
            status = self._table.status(run_id)
            if status == DELETING and what != "deleted":
                raise NotFound(f"run {run_id!r} is being deleted")
            if status in ("queued", "running") or run_id in self._running:
                raise UsageError(
                    f"run {run_id!r} is {status}; only a run that has ended can be {what}. Stop it first, and wait "
                    f"until it has ended: fedloom stop {run_id}"
                )
            return status

    def _erase(self, run_id: str) -> None:
        """Remove a run's folder, then its row."""
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._folder / "runs" / run_id)
        except OSError as exc:
            raise RunFailed(
                f"run {run_id!r} cannot be deleted completely: {exc.strerror}. Try again; the server's log has more"
            ) from exc
        with self._changed:
            self._table.remove(run_id)

    def _next(self) -> str | None:
        with self._changed:
            while not self._closing:
                run_id = self._table.next_queued()
                if run_id is not None:
                    self._table.set(run_id, status="running", error="")
                    self._running[run_id] = _Running()
                    return run_id
                self._changed.wait()
        return None

    def _work(self) -> None:
        while True:
            try:
                run_id = self._next()
            except StorageFull as exc:
                self._wait_for_room(exc)
                continue
            if run_id is None:
                return
            status, error = self._do(run_id)
            full = error.startswith(f"{StorageFull.__name__}:")
            if full or (self._closing and status == "interrupted"):
                status = "queued"  # it resumes when there is space, or with the next server
            self._settle(run_id, status, error)
            if full:
                self._wait_for_room(error)

    def _do(self, run_id: str) -> tuple[str, str]:
        """Execute a run; returns its status, and the error that ended it early."""
        try:
            summary = self._run_one(
                DiskRunStore.open(self._folder / "runs" / run_id),
                lambda event: self._emit(run_id, event),
                self._running[run_id].stop,
            )
        except BaseException as exc:  # the thread has more runs to do, whatever this one's plug-ins raise
            _log.exception("run %s failed outside its loop", run_id, extra={"run": run_id})
            return "failed", f"{type(exc).__name__}: {exc}"
        return summary.status, summary.error or ""

    def _settle(self, run_id: str, status: str, error: str) -> None:
        """Record how a run ended, as soon as there is disk space."""
        while True:
            try:
                with self._changed:
                    self._table.set(run_id, status=status, error=error)
                    del self._running[run_id]
                    self._end_watches(run_id)
                return
            except StorageFull as exc:
                if self._closing:
                    return  # it still counts as running, so the next server resumes it
                self._wait_for_room(exc)

    def _wait_for_room(self, why: object) -> None:
        _log.error("the disk is full; checking again in %.0f s: %s", ROOM_S, why)
        with self._changed:
            self._clock.wait_for(self._changed, lambda: self._closing, ROOM_S)

    def _end_watches(self, run_id: str) -> None:
        for watcher in self._watchers.get(run_id, []):
            watcher.close()

    def _emit(self, run_id: str, event: Event) -> None:
        values = event_json(event)
        with self._changed:
            if run_id in self._running:
                self._running[run_id].ended = isinstance(event, RunFinished)
                if isinstance(event, Notice) and event.waits_for is not None:
                    self._running[run_id].waits_for = event.waits_for
            if isinstance(event, RoundFinished):
                self._table.set(run_id, rounds_done=event.record.round)
            for watcher in self._watchers.get(run_id, []):
                watcher.put(values)
