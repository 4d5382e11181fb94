"""A server and its nodes as processes that can be killed, cut off, slowed down and started again."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.chaos.network import Network
from benchmarks.chaos.schedule import HOSTILE, NODES, SERVER, Schedule
from fedloom.client.admin import AdminClient
from fedloom.client.enroll import join
from fedloom.client.leftovers import descendants
from fedloom.core.identity import Identity

_ROOT = Path(__file__).parents[2]


class Zygote:
    """The process that has imported everything, and forks those that do something."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos.programs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def fork(self, **spec: Any) -> int:
        """Start a process that plays the role `spec` says; returns its id."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(spec) + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._process.stdout.readline())["pid"])

    def close(self) -> None:
        """End it, and with it all it has forked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Fleet:
    """The programs of one schedule.

    Args:
        schedule: what they are like.
        folder: for the server's state and everything else; nothing else is written.
        zygote: forks them.
        network: their links; None where all share this machine's network.
        quick: whether programs notice things within a fraction of a second, or as fast as they do for users.
    """

    def __init__(
        self, schedule: Schedule, folder: Path, zygote: Zygote, network: Network | None, *, quick: bool = True
    ) -> None:
        self._quick = quick
        self._schedule, self._folder, self._zygote, self._network = schedule, folder, zygote, network
        self.port, self.token = _free_port(), "" if schedule.members else secrets.token_urlsafe(12)
        self.state = folder / "state"
        self._pids: dict[str, int] = {}
        self._down: set[str] = set()
        self.ended_alone: list[str] = []
        """Programs that ended though nobody had killed them."""
        self.nodes = (*NODES, HOSTILE) if schedule.lie else NODES

    @property
    def log(self) -> Path:
        """What the programs have printed."""
        return self._folder / "log.txt"

    @property
    def admin(self) -> Identity | None:
        """Who may do everything, on a server with members."""
        return Identity.load(self.state / "admin") if self._schedule.members else None

    def enroll(self) -> Identity | None:
        """Let every node join, and one more whose membership is revoked at once: that one is returned."""
        if self.admin is None:
            return None
        with AdminClient(self.admin) as admin:
            for name in (*self.nodes, "revoked"):
                join(admin.create_token(name, ttl_s=60.0).encode(), self._folder / name)
            admin.revoke("revoked")
        return Identity.load(self._folder / "revoked")

    def start(self, name: str) -> None:
        """Start the server or a node."""
        self._down.discard(name)
        common: dict[str, Any] = {
            "log": str(self.log),
            "clock": str(self._folder / f"clock-{name}"),
            "token": self.token,
            "quick": self._quick,
        }
        if name == SERVER:
            ready = self._folder / "ready"
            ready.unlink(missing_ok=True)
            self._pids[name] = self._zygote.fork(
                role="server", state=str(self.state), port=self.port, ready=str(ready), **common
            )
            return
        host = self._network.address(name) if self._network else "127.0.0.1"
        self._pids[name] = self._zygote.fork(
            role="agent",
            name=name,
            address=f"{host}:{self.port}",
            identity=str(self._folder / name) if self._schedule.members else "",
            namespace=self._network.namespace(name) if self._network else "",
            seed=self._schedule.index * 10 + self.nodes.index(name),
            noise=self._schedule.noise,
            lie=self._schedule.lie if name == HOSTILE else "",
            **common,
        )

    def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        """Wait for the server to answer."""
        deadline = time.monotonic() + timeout_s
        while not (self._folder / "ready").exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; see {self.log}")
            time.sleep(0.01)

    def kill(self, name: str) -> None:
        """`kill -9`, and nobody starts it again before `start`."""
        self._down.add(name)
        _signal(self._pids[name], signal.SIGKILL)
        while _alive(self._pids[name]):
            time.sleep(0.002)

    def pid(self, name: str) -> int:
        """The program's process."""
        return self._pids[name]

    def alive(self, name: str) -> bool:
        """Whether the program runs."""
        return _alive(self._pids[name])

    def freeze(self, name: str, frozen: bool) -> None:
        """Stop a process where it is, or let it go on: what a cut looks like where links cannot be cut."""
        _signal_all(self._pids[name], signal.SIGSTOP if frozen else signal.SIGCONT)

    def move_clock(self, name: str, seconds: float) -> None:
        """Let the process's time of day jump."""
        (self._folder / f"clock-{name}").write_text(str(seconds), encoding="utf-8")
        _signal_all(self._pids[name], signal.SIGUSR1)

    def supervise(self) -> None:
        """Start again what ended by itself, as a service manager would."""
        for name, pid in list(self._pids.items()):
            if name not in self._down and not _alive(pid):
                self.ended_alone.append(name)
                self.start(name)

    def resume(self, run: Path, timeout_s: float = 60.0) -> None:
        """`fedloom resume` in a process of its own."""
        pid = self._zygote.fork(role="resume", log=str(self.log), run=str(run))
        deadline = time.monotonic() + timeout_s
        while _alive(pid):
            if time.monotonic() > deadline:
                _signal(pid, signal.SIGKILL)
                raise RuntimeError(f"resuming took more than {timeout_s:.0f} s; see {self.log}")
            time.sleep(0.02)

    def rss_mb(self) -> float:
        """The server's resident memory."""
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{self._pids[SERVER]}/status").read_text(encoding="utf-8").splitlines()
            return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024
        return 0.0

    def close(self) -> None:
        """Kill everything."""
        for name in list(self._pids):
            self.kill(name)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of so many megabytes on a folder; False where this machine lets us mount none."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _signal_all(pid: int, number: int) -> None:
    """Send a signal to a program and its children: a node's agent is the child of what supervises it."""
    for each in (pid, *descendants(pid)):
        _signal(each, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
