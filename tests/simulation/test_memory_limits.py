"""What happens when the kernel ends processes for want of memory: a control group with a limit, and a hungry client."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from members import members
from shell import Shell

from fedloom.core.config import Experiment
from fedloom.core.history import RoundRecord
from fedloom.core.messages import RunSpec
from fedloom.testing.by_hand import next_answer, open_exchange, planned_groups
from fedloom.testing.records import model_record

MIB = 1 << 20
LIMIT_MIB = 700
HUNGRY = """
import numpy as np

from fedloom.testing import linear


class Config(linear.Config):
    hungry: tuple[int, ...] = (1,)


class Hungry(linear.Linear):
    def train(self, job, inputs, shard, rule, rng):
        if job.client in self.config.hungry:
            np.ones(900 << 17)  # 900 MiB
        return super().train(job, inputs, shard, rule, rng)


def build_workload(config, experiment):
    return Hungry(config, experiment)
"""
EXPERIMENT = """
name = "hungry"
rounds = 2
clients = 6
strategy = "fedavg"
round.quorum_fraction = 0.5
workload.name = "./hungry.py"
"""


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group with a memory limit (bytes); its file of processes. Skips the test where none can be made."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, name = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = root / f"fedloom-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit), encoding="ascii")
    except OSError as exc:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group with a memory limit can be made here: {exc}")
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()  # fails while a process is left in it


def limited(procs: Path) -> tuple[str, ...]:
    """What a command is started by to be in the group."""
    return ("sh", "-c", f'echo $$ > {procs}; exec "$@"', "sh")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hungry.py").write_text(HUNGRY, encoding="utf-8")
    (tmp_path / "x.toml").write_text(EXPERIMENT, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_client_that_is_ended_for_want_of_memory_is_named_with_the_limit_and_costs_no_other(project: Path) -> None:
    command = [sys.executable, "-m", "fedloom", "run", "x.toml", "--runtime", "process", "--workers", "2", "--out", "r"]
    with memory_group(LIMIT_MIB * MIB) as procs:
        done = subprocess.run(
            [*limited(procs), *command], cwd=project, capture_output=True, encoding="utf-8", timeout=120
        )
        assert procs.read_text(encoding="ascii") == "", "nothing outlives the run"
    assert done.returncode == 0, done.stderr
    records = [
        RoundRecord.model_validate(json.loads(line))
        for line in (project / "r/rounds.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(f.client, f.stage) for record in records for f in record.failures] == [(1, "worker")] * 2
    for failure in (failure for record in records for failure in record.failures):
        assert f"for want of memory, at the limit of {LIMIT_MIB} MiB" in failure.message
        assert "Set fewer runtime.workers" in failure.message


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_joined_node_says_it_and_works_on(project: Path) -> None:
    with (
        memory_group(LIMIT_MIB * MIB) as procs,
        members(project / "server") as fleet,
        contextlib.closing(Shell(project, limited(procs))) as shell,
    ):
        identity = fleet.joined("small")
        code = project / "hungry.py"
        (identity.folder / "policy.toml").write_text(f'[workloads."{code}"]\n', encoding="utf-8")
        node, log = shell.start("client", "--identity", str(identity.folder))
        experiment = Experiment.load(project / "x.toml", ["round.max_attempts=2"])
        spec = RunSpec(run_id="hungry", experiment=experiment.with_code_names())
        with open_exchange(
            fleet.server.coordinator, planned_groups(1.0, 1.0), run=spec, inputs={"model": model_record(5)}
        ) as opened:
            answers = [next_answer(opened, 60.0) for _ in range(2)]
        assert node.poll() is None
        text = log.read_text(encoding="utf-8")
        assert f"for want of memory, at the limit of {LIMIT_MIB} MiB" in text, (text, answers)
        assert sorted(answer.result is None for answer in answers) == [False, True], answers
