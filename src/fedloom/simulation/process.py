"""Agents as processes of this machine, forked by a nursery and replaced when they die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from typing import IO

from fedloom.core.errors import NoCapacity
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.rounds.run_services import RuntimeInfo
from fedloom.simulation.nursery_start import Nursery, start_nursery
from fedloom.simulation.workers import Replacements

_END_S = 10.0
"""Seconds a nursery may take to end its workers; one that was stopped, such as by SIGSTOP, never does."""


class ProcessRuntime:
    """`workers` agents, one numeric thread each.

    Args:
        workers: processes.
        preload: name of the workload whose imports the processes share.
        objects: key of the run's Python objects; empty if it has none.
    """

    def __init__(self, workers: int, preload: str, objects: str = "") -> None:
        self._workers, self._preload, self._objects = workers, preload, objects
        self._nursery: Nursery | None = None
        self._listener: threading.Thread | None = None
        self._stopping = False
        self.pids: dict[str, int] = {}
        """Process of each agent, by its name."""

    def host(self) -> str:
        """Start the nursery, before the server's threads.

        Raises:
            UsageError: the run's Python objects cannot be sent to it.
        """
        self._nursery = start_nursery(self._preload, self._objects)
        return "127.0.0.1"

    def start(self, coordinator: Coordinator, address: str, token: str) -> None:
        self._coordinator, self._address, self._token = coordinator, address, token
        self._replacements = Replacements(coordinator, self._spawn)
        assert self._nursery is not None and self._nursery.stdout is not None
        self._listener = threading.Thread(
            target=self._listen, args=(self._nursery.stdout,), name="fedloom-nursery", daemon=True
        )
        self._listener.start()
        coordinator.on_stuck, coordinator.on_silent = self._end_stuck, self._replacements.end_if_stopped
        for index in range(self._workers):
            self._spawn(f"worker-{index + 1}")

    def place(self) -> RuntimeInfo:
        count = "1 process" if self._workers == 1 else f"{self._workers} processes"
        return RuntimeInfo(runtime="process", workers=self._workers, where=f"{count} on this machine")

    def pump(self) -> None:
        """Do nothing: the work is done elsewhere."""

    def stop(self) -> None:
        self._stopping = True
        if self._nursery is None:
            return
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._nursery.stdin.close()
        killed = _end_of(self._nursery) != 0
        for pid in self.pids.values() if killed else ():  # it has ended nothing itself
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        if self._listener is not None:
            self._listener.join()
        self._nursery.stdout.close()
        self._nursery = None

    def _spawn(self, node: str) -> None:
        assert self._nursery is not None and self._nursery.stdin is not None
        line = json.dumps({"node": node, "address": self._address, "token": self._token})
        try:
            self._nursery.stdin.write(line.encode() + b"\n")
            self._nursery.stdin.flush()
        except (BrokenPipeError, ValueError):
            if not self._stopping:
                raise NoCapacity("the process that forks workers has ended; see its output above") from None

    def _end_stuck(self, node: str) -> None:
        """End a worker that does not respond; another takes its name."""
        pid = self.pids.pop(node, None)
        if pid is not None and not self._stopping:
            self._replacements.stopping(node)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _listen(self, lines: IO[bytes]) -> None:
        for line in lines:
            message = json.loads(line)
            if "started" in message:
                self.pids[message["started"]] = message["pid"]
            elif not self._stopping:
                status = message["status"]
                how = f"signal {-status}" if status < 0 else f"exit status {status}"
                self._replacements.ended(message["ended"], how)
        if not self._stopping and not self._coordinator.closed:
            self._coordinator.give_up("the process that forks workers has ended; see its output above")


def _end_of(nursery: Nursery) -> int:
    """Wait for a nursery's end, and kill it if it does not come; returns its exit status, negative for a signal."""
    deadline = time.monotonic() + _END_S
    while (status := nursery.poll()) is None:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(nursery.pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)
    return status
