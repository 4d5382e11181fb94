"""The commands of a run's owner, against a server and a joined node that are programs: from submit to delete."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell
from support_paths import LINEAR

from fedloom import api
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.records import arrays_sha256
from fedloom.testing.fleet import wait_until

EXPERIMENT = f"""
name = "owned"
rounds = 6
clients = 6
cohort = 3
strategy = "fedavg"
[workload]
name = "{LINEAR}"
sleep_s = 0.1
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


def member(shell: Shell, name: str, *options: str, role: str = "node") -> None:
    token = shell.run("token", "create", "--name", name, "--role", role, "--identity", "state/admin").strip()
    shell.run("join", token, "--identity", name, *options)


def want(folder: Path, *settings: str) -> str | None:
    experiment = Experiment.load(folder / "x.toml", ["runtime.name=inline", "workload.sleep_s=0.0", *settings])
    return api.run(experiment, keep=False).summary.model_sha256


@pytest.mark.slow
def test_a_run_from_its_submission_into_its_owners_hands(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(EXPERIMENT, encoding="utf-8")
    server, port, _ = shell.serve(0, "--allow", str(LINEAR))
    member(shell, "ann", role="user")
    member(shell, "bob", role="user")
    member(shell, "north", "--allow", str(LINEAR))
    node, _ = shell.start("client", "--identity", "north")
    waiting, log = shell.start("submit", "x.toml", "--wait", "--json", "--identity", "ann")
    run_id = wait_until(lambda: log.read_text(encoding="utf-8").partition("\n")[0], 60, "the run's id")
    rounds = tmp_path / "state" / "runs" / run_id / "rounds.jsonl"
    wait_until(lambda: rounds.exists() and len(rounds.read_text(encoding="utf-8").splitlines()) >= 2, 60, "round 2")
    shell.freeze(node)  # the run stays where it is
    said = shell.run("fetch", run_id, "--identity", "ann", "--out", "early")
    assert f"run {run_id} is running" in said and "of 6 rounds done; the model is that of round" in said
    assert "only a run that has ended" in shell.run("delete", run_id, "--identity", "ann", code=1)
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert "no response from the server" in shell.run("fetch", run_id, "--identity", "ann", "--out", "x", code=1)
    server, _, _ = shell.serve(int(port), "--allow", str(LINEAR))
    shell.freeze(node, frozen=False)
    assert waiting.wait(60) == 0, log.read_text(encoding="utf-8")
    summary = json.loads(log.read_text(encoding="utf-8").strip().splitlines()[-1])
    assert summary["status"] == "done" and summary["model_sha256"] == want(tmp_path) and summary["run_dir"] is None

    assert shell.run("fetch", run_id, "--identity", "ann").splitlines()[-1] == f"runs/{run_id}/report.html"
    model = frames.decode((tmp_path / "runs" / run_id / "model" / "model.safetensors").read_bytes())
    assert arrays_sha256(model.groups["model"]) == summary["model_sha256"]
    assert "does not belong to 'bob'" in shell.run("fetch", run_id, "--identity", "bob", "--out", "b", code=1)
    assert not (tmp_path / "b").exists()
    assert "no run 'nothing'" in shell.run("fetch", "nothing", "--identity", "ann", code=1)
    lines = shell.run("logs", run_id, "--identity", "ann").splitlines()
    assert sum("round finished in" in line for line in lines) >= 6 and lines[-1].endswith("INFO: run done")
    assert str(tmp_path) not in "\n".join(lines)
    events = shell.run("logs", run_id, "--json", "--identity", "ann").splitlines()
    assert json.loads(events[-1])["event"] == "RunFinished"

    assert "expected --rounds with more than that" in shell.run("resume", run_id, "--identity", "ann", code=1)
    assert "6 of 8 rounds are done" in shell.run("resume", run_id, "--rounds", "8", "--identity", "ann")
    watched = shell.run("watch", run_id, "--json", "--identity", "ann")
    more = json.loads(watched[watched.index('{"run_id"') : watched.rindex("}") + 1])
    assert more["model_sha256"] == want(tmp_path, "rounds=8")
    wait_until(lambda: f" {8}/8 " in shell.run("runs", "--identity", "ann"), 60)
    shell.run("fetch", run_id, "--all", "--identity", "ann", "--out", "whole")
    assert (
        want(tmp_path, "rounds=9")
        == api.resume(tmp_path / "whole", overrides=["rounds=9", "runtime.name=inline"]).summary.model_sha256
    )
    deadline = time.monotonic() + 20
    while " running " in shell.run("runs", "--identity", "ann"):
        assert time.monotonic() < deadline
    assert "and is deleted" in shell.run("delete", run_id, "--identity", "ann")
    assert not rounds.parent.exists() and run_id not in shell.run("runs", "--identity", "state/admin")
    audit = shell.run("audit", "--json", "--identity", "state/admin").splitlines()
    seen = [line["event"] for line in map(json.loads, audit) if line.get("run") == run_id and line["who"] == "ann"]
    assert {"submitted", "fetched", "logs", "resumed", "deleted", "watched"} <= set(seen)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fetch", "r", "--model", "--all"), "exclude each other"),
        (("resume", "r", "--workers", "2"), "--workers, --ray-address and --json are for runs on this machine"),
        (("resume", "r"), "is no folder here"),
        (("resume", "runs/r"), "expected a run's folder, but 'runs/r' does not exist"),
        (("submit", "digits-fedavg", "--json"), "it needs --wait"),
        (("delete", "r"), "Join a server first"),
        (("logs", "r"), "Join a server first"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    from fedloom.cli import main

    assert main(list(arguments)) == 2
    assert said in capsys.readouterr().err
