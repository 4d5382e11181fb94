"""The papers' strategies on a really joined node: mutual TLS, a policy that allows workloads alone, an own process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.testing.fleet import wait_until

IMAGES = """
[workload]
name = "image_classification"
model = { name = "mlp", hidden = [16, 8] }
training = { learning_rate = 0.05, batch_size = 32 }
[workload.data]
source = "digits"
"""
SPIKES = """
[workload]
name = "spiking_classification"
time_steps = 4
model = { name = "mlp", hidden = [16] }
training = { learning_rate = 0.05, batch_size = 32 }
[workload.data]
source = "digits"
"""
LOW_RANK = 'targets = ["1", "3"]\nrank_max = 4\n'
STRATEGIES = {
    "sa_fedlora": (LOW_RANK + "rank_min = 2\ninitiating_rounds = 1\n", IMAGES),
    "flora": ('targets = ["1", "3"]\nrank = 4\n', IMAGES),
    "sfedca": ("", SPIKES),
}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with contextlib.closing(Shell(tmp_path)) as shell:
        yield shell


def test_each_finishes_with_the_bits_of_a_run_in_one_process(shell: Shell, tmp_path: Path) -> None:
    shell.serve(0)
    token = shell.run("token", "create", "--name", "lab-7", "--identity", "state/admin").strip()
    shell.run(
        "join", token, *(f"--allow={workload}" for workload in ("image_classification", "spiking_classification"))
    )
    _, client_log = shell.start("client")
    for name, (settings, workload) in STRATEGIES.items():
        text = (
            f'name = "{name}"\nrounds = 3\nclients = 6\ncohort = 4\n[strategy]\nname = "{name}"\n{settings}{workload}'
        )
        (tmp_path / "x.toml").write_text(text, encoding="utf-8")
        run_id = shell.run("submit", "x.toml", "--identity", "state/admin").split()[0]
        summary = tmp_path / "state" / "runs" / run_id / "summary.json"
        wait_until(
            summary.exists, 120, f"the end of {name}; the node said: {client_log.read_text(encoding='utf-8')[-2000:]}"
        )
        found = json.loads(summary.read_text(encoding="utf-8"))
        want = api.run(Experiment.load(tmp_path / "x.toml", ["runtime.name=inline"]), keep=False)
        assert (found["status"], found["error"]) == ("done", None), name
        assert found["model_sha256"] == want.summary.model_sha256, name
