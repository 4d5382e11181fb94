"""The table of a server's runs, in its SQLite file: queued, running, ended, with their owners."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from fedloom.core.errors import NotFound, StorageFull
from fedloom.core.records import JsonObject
from fedloom.server.run_views import Owner, RunState
from fedloom.server.store.columns import add_columns

_SCHEMA = """
create table if not exists runs (
  run_id text primary key, name text not null, status text not null, rounds integer not null,
  rounds_done integer not null default 0, error text not null default '', submitted real not null,
  owner text not null default '', owner_id text not null default '', owner_role text not null default ''
)
"""
_TEXT = "text not null default ''"
_COLUMNS = ("run_id", "name", "status", "rounds_done", "rounds", "error", "owner")

DELETING = "deleting"
"""Status of a run whose folder is being removed; the next server continues the removal."""


class RunTable:
    """The table of runs. Not thread-safe: call it with the queue's lock.

    Args:
        file: the SQLite file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._database.execute("pragma journal_mode=wal")
        self._database.execute(_SCHEMA)
        add_columns(self._database, "runs", {"owner_id": _TEXT, "owner_role": _TEXT})

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, run_id: str, name: str, rounds: int, submitted: float, owner: Owner) -> None:
        """Queue a run.

        Args:
            run_id, name: of the run.
            rounds: 0 for a run without an end.
            submitted: seconds since 1970.
            owner: who submits it.

        Raises:
            StorageFull: the disk is full.
        """
        self._write(
            "insert into runs (run_id, name, status, rounds, submitted, owner, owner_id, owner_role) "
            "values (?, ?, 'queued', ?, ?, ?, ?, ?)",
            (run_id, name, rounds, submitted, owner.name, owner.id, owner.role),
        )

    def set(self, run_id: str, **columns: str | int | float | None) -> None:
        """Change columns of a run.

        Raises:
            StorageFull: the disk is full.
        """
        assignments = ", ".join(f"{name} = ?" for name in columns)
        self._write(f"update runs set {assignments} where run_id = ?", (*columns.values(), run_id))

    def remove(self, run_id: str) -> None:
        """Delete a run's row.

        Raises:
            StorageFull: the disk is full.
        """
        self._write("delete from runs where run_id = ?", (run_id,))

    def requeue_running(self) -> None:
        """Queue the runs that an earlier server was running when it ended.

        Raises:
            StorageFull: the disk is full.
        """
        self._write("update runs set status = 'queued' where status = 'running'")

    def deleting(self) -> list[str]:
        """Return the runs whose folders are being removed."""
        rows = self._database.execute("select run_id from runs where status = ?", (DELETING,)).fetchall()
        return [str(run_id) for (run_id,) in rows]

    def next_queued(self) -> str | None:
        """Return the queued run that was submitted first."""
        row = self._database.execute(
            "select run_id from runs where status = 'queued' order by submitted limit 1"
        ).fetchone()
        return None if row is None else str(row[0])

    def status(self, run_id: str) -> str:
        """Return a run's status.

        Raises:
            NotFound: no such run.
        """
        row = self._database.execute("select status from runs where run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise NotFound(f"no run {run_id[:80]!r} on this server; list runs with `fedloom runs`")
        return str(row[0])

    def state(self, run_id: str) -> RunState:
        """Return how far a run is.

        Raises:
            NotFound: no such run.
        """
        self.status(run_id)
        row = self._database.execute(
            "select status, rounds_done, rounds from runs where run_id = ?", (run_id,)
        ).fetchone()
        return RunState(status=row[0], rounds_done=row[1], rounds=row[2])

    def owner(self, run_id: str) -> Owner:
        """Return a run's owner.

        Raises:
            NotFound: no such run.
        """
        self.status(run_id)
        row = self._database.execute(
            "select owner_id, owner, owner_role from runs where run_id = ?", (run_id,)
        ).fetchone()
        return Owner(*map(str, row))

    def rows(self, owner_id: str | None = None) -> list[JsonObject]:
        """Return every run, or every run of one member, oldest first."""
        rows = self._database.execute(
            f"select {', '.join(_COLUMNS)} from runs where ? is null or owner_id = ? order by submitted",
            (owner_id, owner_id),
        ).fetchall()
        return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]

    def _write(self, statement: str, values: Sequence[str | int | float | None] = ()) -> None:
        try:
            self._database.execute(statement, values)
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise StorageFull(
                f"the server's queue cannot be written: {exc}. Free space in {self._file.parent}"
            ) from exc
