"""What a run's code starts on a node ends with the run, and nothing else does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from shell import Shell

from fedloom.testing.fleet import wait_until

PROGRAM = """
import json, subprocess, sys, time
from fedloom.client.leftovers import Leftovers, adopt_orphans

TWICE = (
    "import subprocess; null = subprocess.DEVNULL\\n"
    "print(subprocess.Popen(['sleep', '100'], start_new_session=True, stdout=null, stderr=null).pid)"
)


def start():
    direct = subprocess.Popen(["sleep", "100"], start_new_session=True)
    shell = subprocess.Popen(["sh", "-c", "sleep 100 & wait"])
    orphan = int(subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True).stdout)
    return [direct.pid, shell.pid, orphan]


adopt_orphans()
before = [subprocess.Popen(["sleep", "100"]).pid]
leftovers = Leftovers()
runs = {}
for run in ("a", "b"):
    with leftovers.of_run(run):
        runs[run] = start()


def alive(pids):
    living = []
    for pid in pids:
        try:
            if open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z":
                living.append(pid)
        except OSError:
            pass
    return living


def say(step):
    time.sleep(0.1)
    living = {run: len(alive(pids)) for run, pids in runs.items()}
    print(json.dumps({"step": step, "before": len(alive(before)), **living}), flush=True)


say("started")
leftovers.end("a")
say("a ended")
leftovers.end_all()
say("all ended")
import os
os.kill(before[0], 9)
"""


def test_each_run_ends_its_own_and_the_program_all() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"step": "started", "before": 1, "a": 3, "b": 3},
        {"step": "a ended", "before": 1, "a": 0, "b": 3},
        {"step": "all ended", "before": 1, "a": 0, "b": 0},
    ]


PLUGIN = """
import subprocess

from fedloom.testing import linear

from fedloom.testing.linear import Config


class Starts(linear.Linear):
    def train(self, job, inputs, shard, rule, rng):
        with open(PIDS, "a") as file:
            shell = "sleep 100 > /dev/null 2>&1 & echo $!"
            file.write(subprocess.run(["sh", "-c", shell], capture_output=True, text=True).stdout)
            file.write(f"{subprocess.Popen(['sleep', '100']).pid}\\n")
        return super().train(job, inputs, shard, rule, rng)


def build_workload(config, experiment):
    return Starts(config, experiment)
"""


def experiment_in(folder: Path) -> Path:
    """Write an experiment of 2 rounds with 2 clients, of which each starts 2 programs; returns where their pids go."""
    pids_file = folder / "pids"
    (folder / "starts.py").write_text(f"PIDS = {str(pids_file)!r}\n{PLUGIN}", encoding="utf-8")
    (folder / "x.toml").write_text(
        'rounds = 2\nclients = 2\nstrategy = "fedavg"\nworkload = { name = "./starts.py" }\n',
        encoding="utf-8",
    )
    return pids_file


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("command", [["check", "x.toml"], ["run", "x.toml", "--runtime", "inline", "--out", "r"]])
def test_a_command_ends_what_code_has_started_in_its_own_process(tmp_path: Path, command: list[str]) -> None:
    pids_file = experiment_in(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "fedloom", *command], capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    pids = [int(word) for word in pids_file.read_text(encoding="utf-8").split()]
    assert len(pids) == (4 if command[0] == "check" else 8)
    assert not any(map(alive, pids))


@pytest.mark.slow
def test_a_joined_node_ends_them_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    pids_file, plugin = experiment_in(tmp_path), tmp_path / "starts.py"
    with contextlib.closing(Shell(tmp_path)) as shell:
        shell.serve(0, "--allow", str(plugin))
        token = shell.run("token", "create", "--name", "ann", "--role", "user", "--identity", "state/admin")
        shell.run("join", token.strip())
        token = shell.run("token", "create", "--name", "lab-7", "--identity", "state/admin")
        shell.run("join", token.strip(), "--allow", str(plugin))
        client, _ = shell.start("client")
        shell.run("watch", shell.run("submit", "x.toml").split()[0])
        pids = [int(word) for word in pids_file.read_text(encoding="utf-8").split()]
        assert len(pids) == 4 + 8, "of the trial at submission, and of the run"
        wait_until(lambda: not any(map(alive, pids)), 60)
        assert client.poll() is None
