"""The servers under test, each in a process of its own: one whose callers share a secret, one with members."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fuzz.samples import HONEST, RUN, experiment, model
from fedloom.core.accumulators import RunningMean
from fedloom.core.messages import Hello, RunSpec
from fedloom.core.records import MODEL, Exchange, Job, Record
from fedloom.server.access import calls
from fedloom.server.access.members import Registry
from fedloom.server.access.membership import Membership, enroll_administrator, open_security
from fedloom.server.app import Server
from fedloom.server.fleet.planned import PlannedExchange, PlannedGroup, RunFacts
from fedloom.server.fleet.vetting import vet_sum
from fedloom.server.run_queue import RunQueue
from fedloom.server.run_views import Owner

_ROOT = Path(__file__).parents[2]
TOKEN = "of-this-fuzz"
OWNER = "owner"
"""The member whose run waits in the queue."""


class UnderTest:
    """A server's process.

    Args:
        process: with pipes.
        folder: holds its state folder `state`, and the folder `here` it was started in.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._measured, self.folder = process, psutil.Process(process.pid), folder
        assert process.stdout is not None
        self.reported: dict[str, Any] = json.loads(process.stdout.readline())
        """Its ports, and the waiting run's id."""

    def held(self) -> dict[str, Any]:
        """What it holds now, as it says itself."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def rss_mb(self) -> float:
        """Its resident memory."""
        return float(self._measured.memory_info().rss / (1 << 20))


@contextlib.contextmanager
def under_test(folder: Path, *, members: bool) -> Iterator[UnderTest]:
    """Start a server, and end it."""
    (folder / "here").mkdir(parents=True)
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.fuzz.server", str(folder / "state"), "members" if members else "token"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder.parent / f"{folder.name}.log").open("w", encoding="utf-8"),
        encoding="utf-8",
        cwd=folder / "here",
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        try:
            yield UnderTest(process, folder)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def _serve(state: Path, members: bool) -> None:
    """For each line on stdin, tell what is held."""
    calls.SESSIONS = calls.RENEWALS = 1 << 30  # each message takes a session of its own, or a renewal
    with (
        Server(shared_memory=False, by_labels=members) as server,
        contextlib.closing(RunQueue(state, _never)) as runs,
        contextlib.ExitStack() as stack,
    ):
        server.coordinator.register(Hello(node=HONEST, session="s"), "remote")
        reported: dict[str, Any]
        if members:
            security = stack.enter_context(open_security(state, "127.0.0.1", Membership(enroll_port=0)))
            port = server.listen(runs=runs, security=security)
            enroll_administrator(security, state / "admin", "127.0.0.1", port)
            reported = {
                "port": port,
                "enroll port": server.enroll_port,
                "run": runs.submit(experiment(), Owner("another member", OWNER)),
            }
        else:
            reported = {"port": server.listen(token=TOKEN, runs=runs), "run": "nobody"}
        print(json.dumps(reported), flush=True)
        for held in stack.enter_context(_exchange(server)):
            ids, folders = {row["run_id"] for row in runs.rows()}, {path.name for path in (state / "runs").glob("*")}
            held |= {"runs": len(ids), "in folders": ids == folders, "threads": threading.active_count()}
            print(json.dumps(held | (_registered(state, security.registry) if members else {})), flush=True)


def _never(store: Any, emit: Any, stop: threading.Event) -> Any:
    raise AssertionError("no run is started here")


@contextlib.contextmanager
def _exchange(server: Server) -> Iterator[Iterator[dict[str, Any]]]:
    """An exchange that never ends, and what is held at each line."""
    run = RunFacts(spec=RunSpec(run_id=RUN, experiment={}), max_attempts=1_000_000)
    groups = tuple(PlannedGroup(jobs=(Job(round=1, client=client),), work=1.0) for client in (0, 1))
    spec = Exchange(jobs=tuple(group.jobs[0] for group in groups), inputs={MODEL: model()})

    def vet(total: Record, clients: Any) -> None:
        vet_sum(RunningMean, model(), total, clients)

    def lines() -> Iterator[dict[str, Any]]:
        accepted = 0
        for _ in sys.stdin:
            while not opened.answers.empty():
                answer: Any = opened.answers.get()
                accepted += 1
                if answer.total is not None:
                    vet(answer.total, [report.client for report in answer.result.reports])
                opened.done.discard(answer.index)
                if answer.index not in opened.pending:
                    opened.pending.append(answer.index)
            yield {
                "accepted": accepted,
                "sound": HONEST in server.coordinator.nodes() and len(opened.groups) == 2,
                "nodes": len(server.coordinator.nodes()),
                "announced bytes": sum(len(upload.data) for upload in server.payloads._uploads.values()),
            }

    planned = PlannedExchange(run=run, round=1, index=0, exchange=spec, groups=groups, vet=vet)
    with server.coordinator.exchange(planned) as opened:
        yield lines()


def _registered(state: Path, registry: Registry) -> dict[str, Any]:
    """What the registry keeps, and whether another one would read the same from disk."""
    file = state / "fedloom.sqlite"
    with contextlib.closing(Registry(file)) as again, contextlib.closing(sqlite3.connect(file)) as database:
        counts = {
            table: int(database.execute(f"select count(*) from {table}").fetchone()[0])
            for table in ("tokens", "members", "certificates")
        }
        return {**counts, "reloads": again.members() == registry.members()}


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2] == "members")
