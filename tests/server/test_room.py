"""What a server does when room is short: a full disk pauses its runs, an announcement takes no memory."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedloom.core.config import Experiment
from fedloom.core.errors import StorageFull
from fedloom.core.events import Event
from fedloom.core.history import RunSummary
from fedloom.server import run_queue
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.run_queue import RunQueue
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.testing.fleet import wait_until

Make = Callable[..., Experiment]
GIB = 1 << 30


def ended(store: DiskRunStore, error: str | None) -> RunSummary:
    return RunSummary(
        run_id=store.run_id, run_dir=None, name="x", status="failed" if error else "done", rounds=1, metrics={},
        bytes_up=1, bytes_down=1, params_up=1, params_down=1, wire_bytes_up=1, wire_bytes_down=1, seconds=1,
        model_sha256=None, num_parameters=1, seed=1, group_size=1, runtime="fleet", workers=1, failures=0, error=error,
    )  # fmt: skip


def statuses(runs: RunQueue) -> list[str]:
    return [row["status"] for row in runs.rows()]


def test_a_run_whose_disk_is_full_continues_when_there_is_room(
    linear: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_queue, "ROOM_S", 0.02)
    room, tries = threading.Event(), list[str]()

    def run_one(store: DiskRunStore, emit: Callable[[Event], None], stop: threading.Event) -> RunSummary:
        tries.append(store.run_id)
        return ended(store, None if room.is_set() else f"{StorageFull.__name__}: no space left")

    with contextlib.closing(RunQueue(tmp_path / "state", run_one)) as runs:
        runs.start()
        run_id = runs.submit(linear().to_dict())
        wait_until(lambda: len(tries) >= 3)
        row = runs.rows()[0]
        assert row["status"] in ("queued", "running") and row["error"] in ("", "StorageFull: no space left")
        room.set()
        wait_until(lambda: statuses(runs) == ["done"])
        assert set(tries) == {run_id}


class FullDatabase:
    """A database that cannot be written for a while."""

    def __init__(self, inner: sqlite3.Connection) -> None:
        self._inner, self.full = inner, False

    def execute(self, statement: str, *values: Any) -> Any:
        if self.full and not statement.startswith("select"):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return self._inner.execute(statement, *values)

    def close(self) -> None:
        self._inner.close()


def test_a_queue_that_cannot_be_written_waits_and_its_worker_lives(
    linear: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to end its only worker, so that a server answered and never ran anything again."""
    monkeypatch.setattr(run_queue, "ROOM_S", 0.02)
    began, go = threading.Event(), threading.Event()

    def run_one(store: DiskRunStore, emit: Callable[[Event], None], stop: threading.Event) -> RunSummary:
        began.set()
        assert go.wait(60)
        return ended(store, None)

    runs = RunQueue(tmp_path / "state", run_one)
    database = FullDatabase(runs._table._database)
    runs._table._database = database  # type: ignore[assignment]
    with contextlib.closing(runs):
        runs.start()
        runs.submit(linear().to_dict())
        assert began.wait(60)
        database.full = True
        with pytest.raises(StorageFull, match="Free space in"):
            runs.submit(linear().to_dict())
        go.set()
        runs._threads[0].join(0.2)
        assert runs._threads[0].is_alive()
        assert statuses(runs) == ["running"]
        database.full = False
        wait_until(lambda: statuses(runs) == ["done"])


def test_an_announced_upload_takes_no_memory_before_its_bytes_come() -> None:
    store, process = PayloadStore(None, max_payload_bytes=8 * GIB), psutil.Process()
    before = process.memory_info().rss
    assert store.upload_offset("n", "a" * 64, 4 * GIB) == 0
    assert process.memory_info().rss - before < 64 << 20
    data = b"x" * 1000
    digest = hashlib.sha256(data).hexdigest()
    assert store.upload("n", digest, 1000, 0, [data[:600], data[600:]]) == 1000
    assert list(store._uploads) == [("n", digest)], "the frame that never came is let go"
