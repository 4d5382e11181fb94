"""Doing a study's runs: those that are not done yet, in their folders, several at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedloom.core.config import Experiment, is_incidental
from fedloom.core.errors import Interrupted, RunExists
from fedloom.core.run_files import EXPERIMENT, SUMMARY
from fedloom.core.text import dotted
from fedloom.reporting.run_folder import RunFolder
from fedloom.studies.beside import all_done
from fedloom.studies.grid import Planned
from fedloom.studies.pool import Pool

RUNS = "runs"
LOG = "workers.log"
_MOST_DIFFERENCES = 5


class Watcher(Protocol):
    """Is told how a study goes on."""

    def begin(self, total: int, done: int, jobs: int) -> None:
        """So many runs are planned, so many were done before."""

    def round(self, run: Planned, number: int, rounds: int) -> None:
        """A run has finished a round."""

    def end(self, run: Planned, ended: str, error: str, seconds: float) -> None:
        """A run has ended: `done`, `failed` or `interrupted`."""

    def close(self) -> None:
        """No more is coming."""


@dataclass
class Ran:
    """What came of a study's runs."""

    done: int = 0
    """Runs that are done, those of earlier calls included."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why runs failed, by key."""


def folder_of(out: Path, run: Planned) -> Path:
    """Where a run lives."""
    return out / RUNS / run.scenario / run.arm / f"seed-{run.seed}"


def run_all(grid: Sequence[Planned], out: Path, *, jobs: int | None, watcher: Watcher) -> Ran:
    """Do what is left of a grid. Done runs are skipped, others go on from their checkpoints or are tried again.

    Args:
        grid: the experiments.
        out: the study's folder.
        jobs: runs at a time; None takes one for each core.
        watcher: is told.

    Raises:
        RunExists: a folder holds a run with other settings; nothing was started.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
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
            f"{ran.done} of {len(grid)} runs are done and kept in {out}; the same command goes on with the rest"
        ) from None
    finally:
        watcher.close()
    return ran


def is_done(folder: Path) -> bool:
    """Whether a run's folder holds a finished run."""
    if not (folder / EXPERIMENT).is_file() or not (folder / SUMMARY).is_file():
        return False
    return RunFolder.read(folder).status == "done"


def _is_complete(run: Planned, folder: Path) -> bool:
    """Return whether a run is done, and the tests beside it."""
    return is_done(folder) and all_done(run.tests, folder)


def _check_same(run: Planned, folder: Path) -> None:
    """Refuse to mix runs of two definitions in one folder."""
    if not (folder / EXPERIMENT).is_file():
        return
    there = Experiment.load(folder / EXPERIMENT)
    if there.fingerprint() == run.experiment.fingerprint():
        return
    old, new = dotted(there.to_dict()), dotted(run.experiment.to_dict())
    changed = [
        f"{key} was {old.get(key, 'not set')!r}, is {new.get(key, 'not set')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not is_incidental(key)
    ]
    more = f"; and {len(changed) - _MOST_DIFFERENCES} more" if len(changed) > _MOST_DIFFERENCES else ""
    raise RunExists(
        f"{folder} holds a run with other settings ({'; '.join(changed[:_MOST_DIFFERENCES])}{more}). The study's "
        "definition has changed since: choose another --out, or take the change back"
    )


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a study as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
