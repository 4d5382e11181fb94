"""Runs those of a study's runs that are not done yet, in their folders, several at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedloom.core.config import Experiment
from fedloom.core.errors import Interrupted, RunExists
from fedloom.core.run_files import EXPERIMENT, SUMMARY
from fedloom.core.text import dotted
from fedloom.reporting.run_folder import RunFolder
from fedloom.studies.grid import Planned
from fedloom.studies.pool import Pool
from fedloom.studies.static_tests import all_done

RUNS = "runs"
LOG = "workers.log"
_MOST_DIFFERENCES = 5


class Watcher(Protocol):
    """Is notified of a study's progress."""

    def begin(self, total: int, done: int, jobs: int) -> None:
        """Handle the beginning: `total` runs are planned, `done` of them are finished."""

    def round(self, run: Planned, number: int, rounds: int) -> None:
        """Handle a finished round of a run."""

    def end(self, run: Planned, ended: str, error: str, seconds: float) -> None:
        """Handle the end of a run: `done`, `failed` or `interrupted`."""

    def close(self) -> None:
        """Handle the end: no more notifications follow."""


@dataclass
class Ran:
    """Outcomes of a study's runs."""

    done: int = 0
    """Finished runs, those of earlier calls included."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why runs failed, by key."""


def folder_of(out: Path, run: Planned) -> Path:
    """Return a run's folder."""
    return out / RUNS / run.scenario / run.arm / f"seed-{run.seed}"


def run_all(grid: Sequence[Planned], out: Path, *, jobs: int | None, watcher: Watcher) -> Ran:
    """Run the rest of a grid. Finished runs are skipped, others resume from their checkpoints or are retried.

    Args:
        grid: the experiments.
        out: the study's folder.
        jobs: runs at a time; None takes one for each core.
        watcher: is notified.

    Raises:
        RunExists: a folder contains a run with other settings; nothing was started.
        Interrupted: Ctrl-C or SIGTERM; the same call continues.
    """
    for run in grid:
        _check_same(run, folder_of(out, run))
    todo = [(run, folder_of(out, run)) for run in grid if not _is_complete(run, folder_of(out, run))]
    ran = Ran(done=len(grid) - len(todo))
    jobs = jobs or len(os.sched_getaffinity(0))
    began: dict[str, float] = {}

    def on_round(run: Planned, number: int, rounds: int) -> None:
        began.setdefault(run.key, time.monotonic())
        watcher.round(run, number, rounds)

    def on_end(run: Planned, ended: str, error: str) -> None:
        if ended == "done":
            ran.done += 1
        elif ended == "failed":
            ran.failures[run.key] = error
        watcher.end(run, ended, error, time.monotonic() - began.get(run.key, time.monotonic()))

    watcher.begin(len(grid), ran.done, jobs)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _terminated_like_interrupted():
            Pool(jobs, out / LOG).work(todo, on_round, on_end)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{ran.done} of {len(grid)} runs are finished and saved in {out}; the same command continues with the rest"
        ) from None
    finally:
        watcher.close()
    return ran


def is_done(folder: Path) -> bool:
    """Return whether a run's folder contains a finished run."""
    if not (folder / EXPERIMENT).is_file() or not (folder / SUMMARY).is_file():
        return False
    return RunFolder.read(folder).status == "done"


def _is_complete(run: Planned, folder: Path) -> bool:
    """Return whether a run and the tests next to it are finished."""
    return is_done(folder) and all_done(run.tests, folder)


def _check_same(run: Planned, folder: Path) -> None:
    """Refuse to mix runs of two definitions in one folder."""
    if not (folder / EXPERIMENT).is_file():
        return
    there = Experiment.load(folder / EXPERIMENT)
    if there.fingerprint() == run.experiment.fingerprint():
        return
    old, new = dotted(there.identity()), dotted(run.experiment.identity())
    changed = [
        f"{key} was {old.get(key, 'not set')!r}, is {new.get(key, 'not set')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    more = f"; and {len(changed) - _MOST_DIFFERENCES} more" if len(changed) > _MOST_DIFFERENCES else ""
    raise RunExists(
        f"{folder} contains a run with other settings ({'; '.join(changed[:_MOST_DIFFERENCES])}{more}). The study's "
        "definition has changed since: choose another --out, or undo the change"
    )


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM end a study as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: it cannot handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
