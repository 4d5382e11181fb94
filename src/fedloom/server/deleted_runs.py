"""Which nodes may still have clients' states of runs that were deleted: they are to drop them when they connect."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from fedloom.core.errors import FedloomError, StorageFull
from fedloom.server.store.run_store import RunStore

KEPT_S = 30 * 86400.0
"""Seconds after which a node that has not connected has removed the states by itself."""
_SCHEMA = "create table if not exists deleted_runs (run_id text, holder text, at real, primary key (run_id, holder))"


class DeletedRuns:
    """A table beside that of the runs. Not thread-safe: call it with the queue's lock.

    Args:
        file: the SQLite file.
        now: the wall clock; seconds since 1970.
    """

    def __init__(self, file: Path, now: Callable[[], float]) -> None:
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=30)
        self._database.execute(_SCHEMA)
        self._now = now

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, run_id: str, holders: Collection[str]) -> None:
        """Note that a run is deleted of which these nodes may have states.

        Raises:
            StorageFull: the disk is full.
        """
        now = self._now()
        rows = [(run_id, holder, now) for holder in sorted(holders)]
        try:
            self._database.execute("delete from deleted_runs where at < ?", (now - KEPT_S,))
            self._database.executemany("insert or replace into deleted_runs values (?, ?, ?)", rows)
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise StorageFull(
                f"run {run_id!r} cannot be deleted: {exc}. Free space where the server's state is"
            ) from exc

    def of(self, names: Collection[str]) -> Sequence[str]:
        """Return the deleted runs that a node may have states of, oldest first.

        Args:
            names: the node's name and the id of the member it is.
        """
        marks = ", ".join("?" * len(names))
        rows = self._database.execute(
            f"select distinct run_id from deleted_runs where holder in ({marks}) and at >= ? order by at, run_id",
            (*names, self._now() - KEPT_S),
        )
        return [str(row[0]) for row in rows]


def holders_of(store: RunStore) -> set[str]:
    """Return who may have clients' states of a run: members' ids if they are its clients, otherwise nodes' names."""
    with contextlib.suppress(FedloomError, OSError, ValueError):  # of a damaged run, no more is known
        if store.experiment().state_home == "node":
            sites = {site.member for line in store.rosters() for site in line.joined}
            return sites or {node for record in store.rounds() for node in record.nodes}
    return set()
