"""The commands as people type them: a server, a token, a device that joins and works, a person who submits."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell
from support_paths import LINEAR

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.testing.fleet import wait_until

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


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


def test_from_a_token_to_a_finished_run_over_the_servers_death_and_out_again(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(EXPERIMENT, encoding="utf-8")
    server, port, _ = shell.serve(0, "--allow", str(LINEAR))
    shell.run(
        "join", shell.run("token", "create", "--name", "ann", "--role", "user", "--identity", "state/admin").strip()
    )
    device = shell.run("token", "create", "--name", "lab-7", "--label", "site=lab", "--identity", "state/admin").strip()
    shell.run("join", device, "--allow", str(LINEAR))
    assert "already used" in shell.run("join", device, "--identity", "twice", code=1)
    client, client_log = shell.start("client")
    run_id = shell.run("submit", "x.toml", "--set", "fleet.labels.site=lab").split()[0]
    rounds = tmp_path / "state" / "runs" / run_id / "rounds.jsonl"
    wait_until(lambda: rounds.exists() and len(rounds.read_text(encoding="utf-8").splitlines()) >= 2, 90, "round 2")
    server.send_signal(signal.SIGKILL)
    server.wait()
    server, _, server_log = shell.serve(int(port), "--allow", str(LINEAR))
    watched = shell.run("watch", run_id, "--json")
    summary = json.loads(watched[watched.index("{") : watched.rindex("}") + 1])
    assert client.poll() is None, "the device was not restarted"
    want = api.run(Experiment.load(tmp_path / "x.toml", ["runtime.name=inline"]), keep=False)
    assert summary["status"] == "done" and summary["model_sha256"] == want.summary.model_sha256
    log = [json.loads(line) for line in server_log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    finished = [line for line in log if line["message"].startswith("round finished")]
    assert {line["run"] for line in finished} == {run_id} and finished[-1]["round"] == 6
    assert any(line.get("node") == "lab-7" and line["message"] == "node online" for line in log)
    numbers = [json.loads(line)["round"] for line in rounds.read_text(encoding="utf-8").splitlines()]
    assert numbers == list(range(1, 7)), "no round lost, none counted twice"
    assert re.search(r"lab-7 +node +good +site=lab", shell.run("node", "list", "--identity", "state/admin"))
    assert "is for admin" in shell.run("node", "list", code=1), "ann is no administrator"
    assert "site=lab" in shell.run("nodes")
    begin = time.monotonic()
    shell.run("node", "revoke", "lab-7", "--identity", "state/admin")
    assert client.wait(60) == 1 and "was revoked" in client_log.read_text(encoding="utf-8"), time.monotonic() - begin
    assert (tmp_path / "config/fedloom/node/key.pem").stat().st_mode & 0o077 == 0


def test_a_server_in_the_clear_stays_on_this_machine(shell: Shell) -> None:
    assert "repeat --insecure" in shell.run("serve", "--insecure", "--host", "0.0.0.0", code=2)


def test_a_device_without_the_file_is_passed_over(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(EXPERIMENT, encoding="utf-8")
    _, _, server_log = shell.serve(0, "--allow", str(LINEAR))
    ann = shell.run("token", "create", "--name", "ann", "--role", "user", "--identity", "state/admin").strip()
    shell.run("join", ann)
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        device = shell.run("token", "create", "--name", name, "--identity", "state/admin").strip()
        shell.run("join", device, "--identity", f"of-{name}", "--allow", f"{LINEAR}={name}")
        shell.start("client", "--identity", f"of-{name}")
    (tmp_path / "south" / "weights").touch()

    def log() -> list[dict[str, str]]:
        return [
            json.loads(line) for line in server_log.read_text(encoding="utf-8").splitlines() if line.startswith("{")
        ]

    wait_until(
        lambda: {"north", "south"} <= {line.get("node") for line in log() if line["message"] == "node online"}, 60
    )

    def submit(*settings: str, code: int = 0) -> tuple[str, dict[str, str]]:
        run_id = shell.run("submit", "x.toml", *(f"--set={setting}" for setting in settings)).split()[0]
        watched = shell.run("watch", run_id, "--json", code=code)
        summary: dict[str, str] = json.loads(watched[watched.index("{") : watched.rindex("}") + 1])
        return run_id, summary

    run_id, done = submit("workload.needs=$DATA/weights")
    want = api.run(Experiment.load(tmp_path / "x.toml", ["runtime.name=inline"]), keep=False)
    assert done["status"] == "done" and done["model_sha256"] == want.summary.model_sha256
    failed = [line for line in log() if line.get("run") == run_id and line["message"].startswith("node failed")]
    assert {(line["node"], line["level"]) for line in failed} == {("north", "warning")}
    assert all("stage load: fedloom.core.errors.DataMissing: the node does" in line["message"] for line in failed)
    _, none = submit("workload.init_needs=$DATA/other", code=1)
    assert none["status"] == "failed"
    assert none["error"].startswith("DataMissing: client 0, round 0, stage init on ")
    assert re.search("\nReported by (north, south|south, north) when creating the initial model.$", none["error"])
