"""The commands as people type them: a server, a token, a device that joins and works, a person who submits."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_support import LINEAR, until

from fedloom.core.config import Experiment
from fedloom.simulation import api

EXPERIMENT = f"""
name = "joined"
rounds = 6
clients = 6
cohort = 3
strategy = "fedavg"
[workload]
name = "{LINEAR}"
sleep_s = 0.05
"""


class Shell:
    """Commands in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def _command(self, arguments: tuple[str, ...], **where: object) -> list[str]:
        return [sys.executable, "-m", "fedloom", *arguments]

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(self._command(arguments), capture_output=True, text=True, cwd=self.folder, timeout=60)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def start(self, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
        log = self.folder / f"log-{len(self._started)}"
        with log.open("w") as file:
            program = subprocess.Popen(self._command(arguments), stdout=file, stderr=file, text=True, cwd=self.folder)
        self._started.append(program)
        return program, log

    def serve(self, port: int = 0) -> tuple[subprocess.Popen[str], str]:
        program, log = self.start("serve", "--state", "state", "--port", str(port), "--log", "json")
        found = until(lambda: re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_text()), 60, "the server")
        return program, found[1]

    def close(self) -> None:
        for program in self._started:
            program.kill()
            program.wait()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


def test_from_a_token_to_a_finished_run_over_the_servers_death_and_out_again(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(EXPERIMENT)
    server, port = shell.serve()
    shell.run(
        "join", shell.run("token", "create", "--name", "ann", "--role", "user", "--identity", "state/admin").strip()
    )
    device = shell.run("token", "create", "--name", "lab-7", "--label", "site=lab", "--identity", "state/admin").strip()
    shell.run("join", device, "--allow", str(LINEAR))
    assert "used up" in shell.run("join", device, "--identity", "twice", code=1)
    client, client_log = shell.start("client")
    run_id = shell.run("submit", "x.toml", "--set", "fleet.labels.site=lab").strip()
    rounds = tmp_path / "state" / "runs" / run_id / "rounds.jsonl"
    until(lambda: rounds.exists() and len(rounds.read_text().splitlines()) >= 2, 90, "round 2")
    server.send_signal(signal.SIGKILL)
    server.wait()
    server, _ = shell.serve(int(port))
    watched = shell.run("watch", run_id, "--json")
    summary = json.loads(watched[watched.index("{") : watched.rindex("}") + 1])
    assert client.poll() is None, "the device was not restarted"
    want = api.run(Experiment.load(tmp_path / "x.toml", ["runtime.name=inline"]), keep=False)
    assert summary["status"] == "done" and summary["model_sha256"] == want.summary.model_sha256
    numbers = [json.loads(line)["round"] for line in rounds.read_text().splitlines()]
    assert numbers == list(range(1, 7)), "no round lost, none counted twice"
    assert re.search(r"lab-7 +node +good +site=lab", shell.run("node", "list", "--identity", "state/admin"))
    assert "is for admin" in shell.run("node", "list", code=1), "ann is no administrator"
    assert "site=lab" in shell.run("nodes")
    begin = time.monotonic()
    shell.run("node", "revoke", "lab-7", "--identity", "state/admin")
    assert client.wait(20) == 1 and "was revoked" in client_log.read_text(), time.monotonic() - begin
    assert (tmp_path / "config/fedloom/node/key.pem").stat().st_mode & 0o077 == 0


def test_a_server_in_the_clear_stays_on_this_machine(shell: Shell) -> None:
    assert "give --insecure a second time" in shell.run("serve", "--insecure", "--host", "0.0.0.0", code=2)
