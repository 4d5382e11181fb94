"""Same seed, same bits: whatever runs the clients, and whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from fedloom import api
from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.records import Job, Record, arrays_sha256
from fedloom.core.seeds import generator
from fedloom.server.app import Server
from fedloom.server.rounds.session import run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.testing.faults import FaultyChannel
from fedloom.testing.fleet import fleet_access

Make = Callable[..., Experiment]


def sha(experiment: Experiment) -> str | None:
    return api.run(experiment, keep=False).summary.model_sha256


def test_inline_equals_ten_lines_of_numpy(linear: Make) -> None:
    experiment = linear(rounds=3)
    program = registry.part("workloads", experiment.workload.name, "workload").build_workload(
        experiment.workload, experiment
    )
    w, b = (program.init(generator(1, "init", 0, 0, 0)).groups["model"][name] for name in ("w", "b"))
    for round in (1, 2, 3):
        cohort = generator(1, "selection", round).choice(12, 6, replace=False)
        total_w, total_b, total_n = np.zeros(5, np.float32), np.zeros((), np.float32), 0.0
        for client in map(int, cohort):
            inputs = {"model": Record({"model": {"w": w, "b": b}})}
            rng = generator(1, "train", round, 0, client)
            update = program.train(Job(round=round, client=client), inputs, program.shard(client), None, rng)
            n = np.float32(update.num_examples)
            total_w = total_w + update.groups["model"]["w"] * n
            total_b = total_b + update.groups["model"]["b"] * n
            total_n += float(n)
        w, b = total_w / np.float32(total_n), total_b / np.float32(total_n)
    result = api.run(experiment, keep=False)
    np.testing.assert_array_equal(result.arrays["w"], w)
    assert result.summary.model_sha256 == arrays_sha256({"w": w, "b": np.asarray(b)})


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_processes_equal_inline(linear: Make, workers: int) -> None:
    here = sha(linear(round={"group_size": 2}))
    assert sha(linear(round={"group_size": 2}, runtime={"name": "process", "workers": workers})) == here


def test_ray_equals_inline(linear: Make) -> None:
    assert sha(linear(runtime={"name": "ray", "workers": 2})) == sha(linear())
    assert subprocess.run(["false"], check=False).returncode == 1, "Ray ignores SIGCHLD: statuses would read 0"


def test_another_seed_gives_other_bits(linear: Make) -> None:
    assert sha(linear(seed=2)) != sha(linear())


def test_a_worker_that_dies_changes_nothing(linear: Make, tmp_path: Path) -> None:
    experiment = linear(workload={"die_once": str(tmp_path / "died")}, runtime={"name": "process", "workers": 2})
    result = api.run(experiment, keep=False)
    assert (tmp_path / "died").exists()
    assert sum(record.reassigned for record in result.history) >= 1
    assert not any(record.failures for record in result.history)
    assert result.summary.model_sha256 == sha(linear())


@pytest.mark.parametrize(("seed", "shared_memory"), [(1, True), (2, True), (3, False)])
def test_a_network_that_loses_repeats_delays_and_cuts_changes_nothing(
    linear: Make, seed: int, shared_memory: bool
) -> None:
    # On a busy machine a cut may outlast the short grace, and count as a death, as often as it likes.
    experiment = linear(
        rounds=4,
        workload={"features": 40_000, "learning_rate": 1e-6},
        cohort=4,
        evaluation={"every": 3},
        round={"max_attempts": 100},
    )
    want = sha(experiment)
    store = MemoryRunStore("faulty")
    with Server(heartbeat_s=0.1, grace_s=0.3, shared_memory=shared_memory) as server:
        port = server.listen(token="secret")
        agents = []
        channels = []
        for index in range(2):
            channel = FaultyChannel(
                GrpcChannel(f"127.0.0.1:{port}", "secret"),
                seed * 10 + index,
                drop=0.15,
                duplicate=0.15,
                delay=0.3,
                cut=0.01,
                delay_s=0.02,
            )
            channels.append(channel)
            agents.append(Agent(channel, f"agent-{index}", give_up_s=20))
        threads = [threading.Thread(target=agent.run) for agent in agents]
        for thread in threads:
            thread.start()
        outcome = run_session(
            experiment, store, fleet_access(server.coordinator, patience_s=20), (), stop=threading.Event()
        )
        for agent in agents:
            agent.stop()
        for thread in threads:
            thread.join()
    assert outcome.error is None
    assert outcome.summary.model_sha256 == want
    faults = {name: sum(channel.faults[name] for channel in channels) for name in channels[0].faults}
    assert faults["dropped"] > 3 and faults["duplicated"] > 3 and faults["delayed"] > 3


RUN = "import sys; from fedloom import api; api.run(api.load(sys.argv[1]), out=sys.argv[2])"
RESUME = "import sys; from fedloom import api; print(api.resume(sys.argv[1]).summary.model_sha256)"


@pytest.mark.parametrize("moment", range(4))
def test_killed_at_any_moment_and_resumed_gives_the_same_bits(linear: Make, tmp_path: Path, moment: int) -> None:
    """kill -9 of the server; its workers die with it."""
    experiment = linear(
        rounds=12, workload={"sleep_s": 0.01}, runtime={"name": "process", "workers": 2}, checkpoint={"keep": 1}
    )
    (tmp_path / "it.toml").write_text(tomli_w.dumps(experiment.to_dict()), encoding="utf-8")
    run = subprocess.Popen([sys.executable, "-c", RUN, "it.toml", "out"], cwd=tmp_path)
    delay = float(generator(7, "kill", moment).uniform(0.0, 0.4))
    rounds = tmp_path / "out" / "rounds.jsonl"
    deadline = time.monotonic() + 60
    while not (rounds.exists() and rounds.read_text(encoding="utf-8").count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    done = rounds.read_text(encoding="utf-8").count("\n")
    resumed = subprocess.run(
        [sys.executable, "-c", RESUME, "out"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    assert resumed.stdout.strip() == sha(linear(rounds=12))
    records = [json.loads(line) for line in rounds.read_text(encoding="utf-8").splitlines()]
    assert [record["round"] for record in records] == list(range(1, 13))
    assert 2 <= done <= 12
