"""Warm worker processes that do a list of runs. Everything happens in the caller's thread."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedloom.core.records import JsonObject
from fedloom.simulation.workers import worker_environment
from fedloom.studies.grid import Planned
from fedloom.studies.static_tests import to_message

_STOP_S = 60.0
"""Seconds a worker has to save its run when the study is stopped."""
OnRound = Callable[[Planned, int, int], None]
OnEnd = Callable[[Planned, str, str], None]


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    busy: Planned | None = None
    pending: bytes = b""


class Pool:
    """`jobs` processes, one numeric thread each; one that dies fails its run and is replaced.

    Args:
        jobs: processes.
        log: file that takes what the workers print.
    """

    def __init__(self, jobs: int, log: Path) -> None:
        self._jobs, self._log = jobs, log
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def work(self, runs: Iterable[tuple[Planned, Path]], on_round: OnRound, on_end: OnEnd) -> None:
        """Do every run; returns when the last has ended.

        Args:
            runs: what to do, each with its folder, in this order.
            on_round: called with a run, its rounds done, and its rounds.
            on_end: called with a run, how it ended (`done`, `failed`, `interrupted`), and its error.
        """
        left = deque(runs)
        with self._log.open("ab") as log:
            try:
                for _ in range(min(self._jobs, len(left))):
                    self._give(self._start(log), left)
                while any(worker.busy for worker in self._workers):
                    for key, _ in self._selector.select():
                        self._hear(key.data, left, log, on_round, on_end)
            finally:
                self._stop()

    def _start(self, log: IO[bytes]) -> _Worker:
        worker = _Worker(
            subprocess.Popen(
                [sys.executable, "-m", "fedloom.studies.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **worker_environment()},
                start_new_session=True,  # Ctrl-C is for the study, which then stops its workers
            )
        )
        self._workers.append(worker)
        assert worker.process.stdout is not None
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _give(self, worker: _Worker, left: deque[tuple[Planned, Path]]) -> None:
        worker.busy = None
        if not left:
            return
        worker.busy, folder = left.popleft()
        run = worker.busy
        tests = [to_message(test) for test in run.tests]
        line = json.dumps({"folder": str(folder.resolve()), "experiment": run.experiment.to_dict(), "tests": tests})
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: its output ends, and the run is counted there
            worker.process.stdin.write(line.encode() + b"\n")
            worker.process.stdin.flush()

    def _hear(
        self, worker: _Worker, left: deque[tuple[Planned, Path]], log: IO[bytes], on_round: OnRound, on_end: OnEnd
    ) -> None:
        assert worker.process.stdout is not None
        data = os.read(worker.process.stdout.fileno(), 65536)
        if not data:
            self._died(worker, left, log, on_end)
            return
        *lines, worker.pending = (worker.pending + data).split(b"\n")
        for line in lines:
            message: JsonObject = json.loads(line)
            assert worker.busy is not None
            if "round" in message:
                on_round(worker.busy, message["round"], message["rounds"])
            else:
                ended = worker.busy
                self._give(worker, left)
                on_end(ended, message["ended"], message["error"])

    def _died(self, worker: _Worker, left: deque[tuple[Planned, Path]], log: IO[bytes], on_end: OnEnd) -> None:
        status, lost = worker.process.wait(), worker.busy
        self._forget(worker)
        if lost is None:
            return
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        if left:
            self._give(self._start(log), left)
        on_end(lost, "failed", f"its process died ({how}); its output is in {self._log}")

    def _forget(self, worker: _Worker) -> None:
        assert worker.process.stdin is not None and worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.close()
        worker.process.stdout.close()
        self._workers.remove(worker)

    def _stop(self) -> None:
        """End every worker; a running run is saved first. A second interrupt does not wait for that."""
        for worker in self._workers:
            if worker.busy is not None:
                worker.process.terminate()
        try:
            for worker in [*self._workers]:
                self._forget(worker)
                self._reap(worker)
        finally:
            for worker in self._workers:
                worker.process.kill()

    def _reap(self, worker: _Worker) -> None:
        try:
            worker.process.wait(_STOP_S)
        except BaseException as exc:
            worker.process.kill()
            worker.process.wait()
            if not isinstance(exc, subprocess.TimeoutExpired):
                raise
