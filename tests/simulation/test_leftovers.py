"""Nothing that a client's code starts outlives its run, however that ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError
from fedloom.testing.fleet import wait_until

Make = Callable[..., Experiment]
PLUGIN = """
import os, signal, subprocess, sys
from fedloom.testing import linear


class Config(linear.Config):
    pids: str = ""
    then: str = ""


class Starts(linear.Linear):
    def train(self, job, inputs, shard, rule, rng):
        with open(self.config.pids, "a") as file:
            for apart in (False, True):
                child = subprocess.Popen(["sleep", "1000"], start_new_session=apart)
                file.write(f"{child.pid}\\n")
            twice = subprocess.run(
                [sys.executable, "-c", "import subprocess; print(subprocess.Popen(['sleep', '1000'],"
                 " start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"],
                capture_output=True, text=True)
            file.write(twice.stdout)
        if self.config.then == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.then == "kills the nursery":
            os.kill(os.getppid(), signal.SIGKILL)
        return super().train(job, inputs, shard, rule, rng)


def build_workload(config, experiment):
    return Starts(config, experiment)
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("runtime", "then"),
    [
        ("process", ""),
        ("process", "dies"),
        pytest.param("ray", "", marks=pytest.mark.slow),
        pytest.param("ray", "dies", marks=pytest.mark.slow),
    ],
)
def test_what_clients_start_ends_with_the_run(linear: Make, tmp_path: Path, runtime: str, then: str) -> None:
    (tmp_path / "starts.py").write_text(PLUGIN, encoding="utf-8")
    workload = {"name": str(tmp_path / "starts.py"), "pids": str(tmp_path / "pids"), "then": then}
    settings = {"rounds": 1, "clients": 1, "cohort": 1, "runtime": {"name": runtime, "workers": 1}}
    try:
        api.run(linear(**settings, workload=workload), keep=False)
    except FedloomError:
        assert then
    pids = [int(line) for line in (tmp_path / "pids").read_text(encoding="utf-8").split()]
    assert len(pids) == 3 * (3 if then else 1)
    try:
        wait_until(lambda: not any(map(alive, pids)))
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)
