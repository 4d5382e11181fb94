"""Agents as processes of this machine, forked by a nursery and replaced when they die."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from typing import IO

from fedloom.core.errors import NoCapacity
from fedloom.server.coordinator import Coordinator
from fedloom.server.session import Place
from fedloom.simulation.runtimes import MAX_EARLY_DEATHS, worker_environment

_log = logging.getLogger(__name__)


class ProcessRuntime:
    """`workers` agents, one numeric thread each.

    Args:
        workers: processes.
        preload: name of the workload whose imports the processes share.
    """

    def __init__(self, workers: int, preload: str) -> None:
        self._workers, self._preload = workers, preload
        self._nursery: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None
        self._stopping = False
        self._early_deaths: dict[str, int] = {}
        self._groups_done: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        """Process of each agent, by its name."""

    def host(self) -> str:
        return "127.0.0.1"

    def start(self, coordinator: Coordinator, address: str, token: str) -> None:
        self._coordinator, self._address, self._token = coordinator, address, token
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "fedloom.simulation.nursery", self._preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **worker_environment()},
            start_new_session=True,  # Ctrl-C is for the server, which then tells its agents
        )
        assert self._nursery.stdout is not None
        self._listener = threading.Thread(
            target=self._listen, args=(self._nursery.stdout,), name="fedloom-nursery", daemon=True
        )
        self._listener.start()
        for index in range(self._workers):
            self._spawn(f"worker-{index + 1}")

    def place(self) -> Place:
        count = "1 process" if self._workers == 1 else f"{self._workers} processes"
        return Place(runtime="process", workers=self._workers, where=f"{count} on this machine")

    def pump(self) -> None:
        """Nothing: the work is done elsewhere."""

    def stop(self) -> None:
        self._stopping = True
        if self._nursery is None:
            return
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.close()
        self._nursery.wait()
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
                raise NoCapacity("the process that forks workers has ended; look at what it printed above") from None

    def _listen(self, lines: IO[bytes]) -> None:
        for line in lines:
            message = json.loads(line)
            if "started" in message:
                self.pids[message["started"]] = message["pid"]
            elif not self._stopping:
                self._ended(message["ended"], message["status"])
        if not self._stopping:
            self._coordinator.give_up("the process that forks workers has ended; look at what it printed above")

    def _ended(self, node: str, status: int) -> None:
        """A worker died: its groups go elsewhere now, and another process takes its name."""
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        _log.warning("%s ended (%s); starting another", node, how)
        self._coordinator.leave(node, "", f"its process ended with {how}")
        done = self._coordinator.groups_done(node)
        early = done == self._groups_done.get(node, 0)
        self._groups_done[node] = done
        self._early_deaths[node] = self._early_deaths.get(node, 0) + 1 if early else 0
        if self._early_deaths[node] > MAX_EARLY_DEATHS:
            self._coordinator.give_up(
                f"{node} died {self._early_deaths[node]} times in a row without finishing any work (last: {how}). "
                "Run with --runtime inline to see where, or give it more memory"
            )
            return
        self._spawn(node)
