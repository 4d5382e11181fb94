"""Clusters of Ray that others run: full, of another version, losing their head; and Ray that the user has started."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import tomli_w

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.simulation.ray_privacy import DECIDED, MODE, OWN_TOKEN, TOKEN

Make = Callable[..., Experiment]
Start = Callable[..., dict[str, str]]
CLUSTER = """
import json, sys
import psutil, ray

holds, changed = float(sys.argv[1]), json.loads(sys.argv[2])
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@ray.remote
class Job:
    def ready(self):
        return True


if holds:
    job = Job.options(num_cpus=holds).remote()
    ray.get(job.ready.remote())
if changed:
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER as space

    gcs = ray._private.worker.global_worker.gcs_client
    facts = json.loads(gcs.internal_kv_get(b"CLUSTER_METADATA", space))
    gcs.internal_kv_put(b"CLUSTER_METADATA", json.dumps({**facts, **changed}).encode(), True, space)
(head,) = [child.pid for child in psutil.Process().children(recursive=True) if child.name() == "gcs_server"]
print(json.dumps({"address": ray.get_runtime_context().gcs_address, "head": str(head)}), flush=True)
sys.stdin.read()
"""
"""A cluster of one CPU, of which a job of its own may hold some, and which may claim other versions than it has."""


@pytest.fixture(autouse=True)
def _no_token_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the token that tests in this process have for Ray: here programs decide for themselves."""
    for name in (MODE, TOKEN, OWN_TOKEN, DECIDED):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(holds: float = 0.0, **changed: str) -> dict[str, str]:
        command = [sys.executable, "-W", "ignore", "-c", CLUSTER, str(holds), json.dumps(changed)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        started.append(process)
        assert process.stdout is not None
        facts: dict[str, str] = json.loads(process.stdout.readline())
        return facts

    yield start
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def command(experiment: Experiment, *options: str) -> list[str]:
    Path("it.toml").write_text(tomli_w.dumps(experiment.to_dict()), encoding="utf-8")
    return [sys.executable, "-m", "fedloom", "run", "it.toml", "--runtime", "ray", "--out", "run", *options]


def run(experiment: Experiment, environment: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(experiment, *options),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=150,
        check=False,
    )


@pytest.mark.slow
def test_a_full_cluster_is_named_while_the_run_waits_and_when_it_gives_up(linear: Make, start: Start) -> None:
    cluster = start(holds=1.0)
    ran = run(linear(), {"RAY_ADDRESS": cluster["address"]})
    assert ran.returncode == 1, ran.stdout
    text = " ".join(ran.stdout.split())
    have = (
        f"none of the 1 workers has started (Ray cluster at {cluster['address']} (RAY_ADDRESS): 1 CPU, 0 of them "
        "free; each worker needs 1). Other jobs use the CPUs"
    )
    assert re.search(r"waits since 20[-\d]+ [\d:]+ UTC: " + re.escape(have), text), text
    assert f"The run waits: {have}" in text and text.count(have) == 2, "a notice, and the error"
    assert "fedloom client" not in text and "internal" not in text


@pytest.mark.slow
def test_part_of_a_cpu_is_enough_for_workers_that_want_no_more(linear: Make, start: Start) -> None:
    cluster = start(holds=0.5)
    ran = run(linear(), {"RAY_ADDRESS": cluster["address"]}, "--set", "runtime.cpus_per_worker=0.5", "--json")
    assert ran.returncode == 0, ran.stdout
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert summary["workers"] == 1
    assert summary["model_sha256"] == api.run(linear(), keep=False).summary.model_sha256


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"ray_version": "2.9.0"}, {"python_version": "3.8.1"}])
def test_a_cluster_of_another_version_is_named_with_both(linear: Make, start: Start, changed: dict[str, str]) -> None:
    cluster = start(**changed)
    ran = run(linear(), {}, "--ray-address", cluster["address"])
    assert ran.returncode == 1, ran.stdout
    text = " ".join(ran.stdout.split())
    assert f"cannot join a Ray cluster at {cluster['address']}, given by --ray-address" in text
    assert "Version mismatch" in text and next(iter(changed.values())) in text
    assert "Use the cluster's versions of Ray and Python here, or omit --ray-address" in text
    assert not Path("run").exists(), "nothing has begun"


@pytest.mark.slow
def test_a_head_that_dies_during_a_run_ends_it_with_its_summary(linear: Make, start: Start) -> None:
    cluster = start()
    experiment = linear(rounds=200, workload={"sleep_s": 0.3})
    environment = {"RAY_ADDRESS": cluster["address"], "RAY_gcs_rpc_server_reconnect_timeout_s": "15"}
    with subprocess.Popen(
        command(experiment, "--set", "checkpoint.every=1"),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    ) as process:
        end = time.monotonic() + 60
        while not Path("run/rounds.jsonl").exists() or not Path("run/rounds.jsonl").stat().st_size:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
        os.kill(int(cluster["head"]), signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    text = " ".join(said.split())
    assert process.returncode == 1, text
    assert f"the Ray head at {cluster['address']} has not answered for" in text and "Ray's logs: /" in text
    summary = json.loads(Path("run/summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "failed" and summary["rounds"] >= 1
    resumed = api.resume("run", overrides=["runtime.name=inline", f"rounds={summary['rounds'] + 1}"])
    assert len(resumed.history) == summary["rounds"] + 1


OWN = """
import json, sys
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@ray.remote(num_cpus=0)
class Mine:
    def answer(self):
        return 42


mine = Mine.remote()
from fedloom import api
from fedloom.core.config import Experiment

experiment = Experiment.load("it.toml", ["runtime.name=ray", *sys.argv[1:]])
digests = [api.run(experiment, keep=False).summary.model_sha256 for _ in range(2)]
print(json.dumps({"digests": digests, "mine": ray.get(mine.answer.remote()), "there": ray.is_initialized()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("address", ["", "runtime.ray_address=10.255.255.1:6379"])
def test_ray_that_the_user_has_started_in_this_process_is_used_and_stays(linear: Make, address: str) -> None:
    Path("it.toml").write_text(tomli_w.dumps(linear().to_dict()), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OWN, *([address] if address else [])],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    if address:
        assert "'10.255.255.1:6379', but this process has already joined Ray at " in ran.stderr, ran.stderr
        return
    assert ran.returncode == 0, ran.stderr
    want = api.run(linear(), keep=False).summary.model_sha256
    assert json.loads(ran.stdout.splitlines()[-1]) == {"digests": [want, want], "mine": 42, "there": True}
