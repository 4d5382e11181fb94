"""The process above a node's agent: it starts the agent again when that is killed, and else ends as it does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from shell import Shell

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.testing.fleet import wait_until

PROGRAM = """
import ctypes, os, signal, subprocess, sys, time
from fedloom.client import supervisor

supervisor._FIRST_PAUSE_S = 0.05
how, log = sys.argv[1:3]
with supervisor.supervised():
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
        orphan = ["sh", "-c", "setsid sleep 100 >/dev/null 2>&1 & echo $!"]
        orphan = subprocess.run(orphan, capture_output=True, text=True)
        file.write(orphan.stdout)
        file.write(f"{subprocess.Popen(['sleep', '100']).pid}\\n")
    if len(open(log).read().split()) < 3 * 3:
        if how == "segfault":
            ctypes.string_at(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            os._exit(0)
    if how == "raise":
        raise SystemExit(3)
    if how == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        print("waits", flush=True)
        time.sleep(100)
    if how == "hang":
        print("waits", flush=True)
        time.sleep(100)
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


@contextlib.contextmanager
def started(how: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the program; it is killed if it has not ended when the block is left."""
    command = [sys.executable, "-c", PROGRAM, how, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8") as program:
        try:
            yield program
        finally:
            program.kill()


def pids(log: Path) -> list[int]:
    return [int(word) for word in log.read_text(encoding="utf-8").split()]


@pytest.mark.parametrize(
    ("how", "status", "times"), [("", 0, 1), ("raise", 3, 1), ("segfault", 0, 3), ("kill", 0, 3), ("exit", 0, 3)]
)
def test_it_is_started_again_until_it_ends_by_itself_and_leaves_nothing(
    tmp_path: Path, how: str, status: int, times: int
) -> None:
    with started(how, tmp_path / "log") as program:
        assert program.wait(60) == status
    assert len(pids(tmp_path / "log")) == 3 * times
    wait_until(lambda: not any(map(alive, pids(tmp_path / "log"))), 60)


def test_it_does_not_depend_on_what_its_parent_ignores(tmp_path: Path) -> None:
    """Where SIGCHLD is ignored, which a child inherits, waiting for the agent would wait for its orphans, too."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with started("raise", tmp_path / "log") as program:
            wait_until(lambda: not alive(program.pid), 60)
    finally:
        signal.signal(signal.SIGCHLD, before)
    wait_until(lambda: not any(map(alive, pids(tmp_path / "log"))), 60)


@pytest.mark.parametrize(
    ("how", "number", "status"),
    [("wait", signal.SIGTERM, 5), ("hang", signal.SIGTERM, 143), ("hang", signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_signal_reaches_it_and_it_is_not_started_again(
    tmp_path: Path, how: str, number: signal.Signals, status: int
) -> None:
    with started(how, tmp_path / "log") as program:
        assert program.stdout is not None and program.stdout.readline() == "waits\n"
        program.send_signal(number)
        assert program.wait(60) == status
    agent, *others = pids(tmp_path / "log")
    wait_until(lambda: not alive(agent), 60)
    if number == signal.SIGTERM:
        wait_until(lambda: not any(map(alive, others)), 60)
    for pid in filter(alive, others):
        os.kill(pid, signal.SIGKILL)


PLUGIN = """
import ctypes, os, signal

from fedloom.testing import linear


class Config(linear.Config):
    ends: tuple[int, ...] = ()


class Ends(linear.Linear):
    def train(self, job, inputs, shard, rule, rng):
        if job.client in self.config.ends:
            (lambda: ctypes.string_at(0), lambda: os._exit(0))[job.client % 2]()
        return super().train(job, inputs, shard, rule, rng)


def build_workload(config, experiment):
    return Ends(config, experiment)
"""


@pytest.mark.slow
def test_a_client_that_ends_the_only_nodes_process_is_named_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    plugin = tmp_path / "ends.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "x.toml").write_text(
        'rounds = 1\nclients = 4\nstrategy = "fedavg"\nround = { quorum_fraction = 0.5, group_size = 1 }\n'
        'workload = { name = "./ends.py", ends = [1, 2] }\n',
        encoding="utf-8",
    )
    with contextlib.closing(Shell(tmp_path)) as shell:
        shell.serve(0, "--allow", str(plugin))
        ann = shell.run("token", "create", "--name", "ann", "--role", "user", "--identity", "state/admin")
        shell.run("join", ann.strip())
        token = shell.run("token", "create", "--name", "lab-7", "--identity", "state/admin")
        shell.run("join", token.strip(), "--allow", str(plugin))
        client, log = shell.start("client")
        run_id = shell.run("submit", "x.toml").split()[0]
        watched = shell.run("watch", run_id, "--json")
        assert client.poll() is None
        assert "was ended (signal 11)" in log.read_text(encoding="utf-8")
        client.send_signal(signal.SIGTERM)
        assert client.wait(60) == 0
    summary = json.loads(watched[watched.index('{"') : watched.rindex("}") + 1])
    (line,) = (tmp_path / "state/runs" / run_id / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    failures = json.loads(line)["failures"]
    assert sorted((each["client"], each["stage"], each["node"]) for each in failures) == [
        (1, "worker", "lab-7"),
        (2, "worker", "lab-7"),
    ]
    failing = {"name": "fedloom.testing.linear", "fail_clients": [1, 2]}
    settings = {"rounds": 1, "clients": 4, "strategy": "fedavg", "round": {"quorum_fraction": 0.5, "group_size": 1}}
    here = api.run(Experiment.parse({**settings, "workload": failing, "runtime": {"name": "inline"}}), keep=False)
    assert summary["model_sha256"] == here.summary.model_sha256
