"""A joined node, in a process of its own and under its policy, whose clients return what cannot be sent."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell

from fedloom import api
from fedloom.core.config import Experiment

PLUGIN = """
import dataclasses

import numpy as np

from fedloom.core.records import Mean, Record
from fedloom.testing import linear

KINDS = (
    lambda update: dataclasses.replace(update, num_examples=-1),
    lambda update: dataclasses.replace(update, num_examples=2.5),
    lambda update: dataclasses.replace(update, num_examples=2**70),
    lambda update: dataclasses.replace(update, metrics={3: Mean(1.0, 1.0)}),
    lambda update: dataclasses.replace(update, metrics={"loss": "low"}),
    lambda update: dataclasses.replace(update, info={"seen": {1, 2}}),
    lambda update: dataclasses.replace(update, groups={"model": {"w": np.array([object()])}}),
    lambda update: dataclasses.replace(update, groups={"model": {"w": [1.0], "b": None}}),
    lambda update: {"w": 1.0},
    lambda update: dataclasses.replace(update, info={"seen": ["caf\\udce9"]}),
    lambda update: dataclasses.replace(update, info={"seen": "x" * (1 << 20)}),
    lambda update: dataclasses.replace(update, metrics={f"m{i}": Mean(1.0, 1.0) for i in range(257)}),
    lambda update: dataclasses.replace(update, state=Record({"s": {"x": np.broadcast_to(1.0, (10**13,))}})),
    lambda update: (_ for _ in ()).throw(ValueError("not UTF-8: \\udcff")),
)


class Config(linear.Config):
    bad: bool = False


class Bad(linear.Linear):
    def train(self, job, inputs, shard, rule, rng):
        update = super().train(job, inputs, shard, rule, rng)
        return KINDS[job.client // 2 % len(KINDS)](update) if self.bad and job.client % 2 else update


def build_workload(config, experiment):
    made = Bad(config, experiment)
    made.bad = config.bad and experiment.rounds > 1  # not in the trial round of its submission
    return made
"""
CLIENTS, ROUNDS = 100, 20
"""Every other client is bad: 1,000 bad results."""
EXPERIMENT = f"""
name = "bad"
rounds = {ROUNDS}
clients = {CLIENTS}
strategy = "fedavg"
evaluation = {{ every = 0 }}
round = {{ quorum_fraction = 0.5, group_size = 10 }}
workload = {{ name = "./bad.py", bad = true }}
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


@pytest.mark.slow
def test_a_thousand_bad_results_fail_their_clients_and_leave_the_node_and_the_logs_in_order(
    shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "x.toml").write_text(EXPERIMENT, encoding="utf-8")
    plugin = str(tmp_path / "bad.py")
    _, _, server_log = shell.serve(0, "--allow", plugin)
    shell.run(
        "join", shell.run("token", "create", "--name", "ann", "--role", "user", "--identity", "state/admin").strip()
    )
    device = shell.run("token", "create", "--name", "lab-7", "--identity", "state/admin").strip()
    shell.run("join", device, "--allow", plugin)
    client, client_log = shell.start("client")

    def finish(*settings: str) -> tuple[str, dict[str, object]]:
        run_id = shell.run("submit", "x.toml", *(f"--set={setting}" for setting in settings)).split()[0]
        watched = shell.run("watch", run_id, "--json")
        summary: dict[str, object] = json.loads(watched[watched.index('{"') : watched.rindex("}") + 1])
        return run_id, summary

    run_id, summary = finish()
    want = api.run(Experiment.load(tmp_path / "x.toml", ["runtime.name=inline"]), keep=False)
    assert (summary["status"], summary["model_sha256"]) == ("done", want.summary.model_sha256)
    rounds = (tmp_path / "state/runs" / run_id / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    failures = [failure for line in rounds for failure in json.loads(line)["failures"]]
    assert Counter((each["round"], each["client"]) for each in failures) == {
        (round, client): 1 for round in range(1, ROUNDS + 1) for client in range(1, CLIENTS, 2)
    }
    assert {each["stage"] for each in failures} == {"outgoing", "train"} and {each["node"] for each in failures} == {
        "lab-7"
    }
    lines = [json.loads(line) for line in server_log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    assert sum("node online" in line["message"] for line in lines) == 1, "it has stayed connected"
    about = [line for line in lines if line.get("run") == run_id and line["level"] == "warning"]
    assert 0 < len(about) <= len(failures), "one line per client and round at most"
    reported = [line for line in client_log.read_text(encoding="utf-8").splitlines() if "stage outgoing" in line]
    (kept,) = {len(json.loads(line)["failures"]) for line in rounds}
    assert len(reported) == sum(each["stage"] == "outgoing" for each in failures) and kept == CLIENTS // 2
    entries = [
        line for line in client_log.read_text(encoding="utf-8").splitlines() if re.match(r"\d{4}-\d\d-\d\d ", line)
    ]
    of_start = [entry for entry in entries if " INFO " in entry]
    assert len(entries) - len(of_start) <= len(failures), "one entry each"
    assert len(of_start) == len(set(of_start)) < 10, "the rules in force, and one connection"
    assert any(
        "client 1, stage outgoing: fedloom.core.errors.BadUpdate: num_examples of 'train': expected" in line
        for line in reported
    )
    assert client.poll() is None
    assert finish("workload.bad=false", "rounds=2")[1]["status"] == "done"
