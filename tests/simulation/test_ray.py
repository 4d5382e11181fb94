"""Agents as Ray actors on a cluster that is there already: replaced when killed, refused when they do not fit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedloom import api
from fedloom.core.config import Experiment, RuntimeSettings
from fedloom.core.errors import NoCapacity
from fedloom.core.events import NodeChanged, RoundFinished, RunStarted
from fedloom.server.app import Server
from fedloom.server.rounds.session import run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.simulation.runtimes import make_runtime
from fedloom.testing.fleet import TOKEN, fleet_access, wait_until

Make = Callable[..., Experiment]
ROOT = Path(__file__).resolve().parents[2]


def test_more_workers_than_a_cluster_has_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from fedloom.simulation import ray_runtime

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_runtime, "_head_address", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    with pytest.raises(NoCapacity, match=r"64 workers of 2 CPU each .* has 4 CPU and 0 GPU, of which 1 and 0 are"):
        ray_runtime.RayRuntime(RuntimeSettings(workers=64, cpus_per_worker=2)).host()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One Ray for all tests here, with two CPUs, started at the repository's root as its users' might be."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent / "support"))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


class Kill:
    """Kills the process of one node, by the pid it told, after the second round."""

    def __init__(self, server: Server) -> None:
        self.server, self.killed = server, 0
        self.events: list[Any] = []

    def write(self, event: Any) -> None:
        self.events.append(event)
        if isinstance(event, RoundFinished) and event.record.round == 2:
            node = self.server.coordinator.nodes()["ray-1"]
            self.killed = int(node.hello.facts["pid"])
            os.kill(self.killed, signal.SIGKILL)

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_two_exchanges_in_a_round_give_the_same_bits(cluster: Any) -> None:
    """SFedCA: candidates' models wait in the actors until they are collected."""
    spiking = {"name": "spiking_classification", "model": {"hidden": [8]}, "time_steps": 4}
    values = {"rounds": 3, "clients": 20, "cohort": 2, "strategy": "sfedca", "workload": spiking}
    inline, ray = (
        api.run(Experiment.parse({**values, "runtime": {"name": name, "workers": 2}}), keep=False)
        for name in ("inline", "ray")
    )
    assert ray.summary.model_sha256 == inline.summary.model_sha256


@pytest.mark.slow
def test_a_killed_actor_is_replaced_and_the_bits_stay(cluster: Any, linear: Make) -> None:
    want = api.run(linear(rounds=8), keep=False).summary.model_sha256
    experiment = linear(rounds=8, workload={"sleep_s": 0.2}, runtime={"name": "ray", "workers": 2})
    with Server(heartbeat_s=0.2, grace_s=0.5) as server:
        kill = Kill(server)
        server._sinks = (kill,)
        runtime = make_runtime(experiment)
        host = runtime.host()
        runtime.start(server.coordinator, f"{host}:{server.listen(host, token=TOKEN)}", TOKEN)
        try:
            fleet = fleet_access(server.coordinator, place=runtime.place, patience_s=60)
            outcome = run_session(experiment, MemoryRunStore("ray-run"), fleet, (kill,), stop=threading.Event())
            assert outcome.error is None
            wait_until(lambda: server.coordinator.online == 2, 60, "the new actor")
            again = server.coordinator.nodes()["ray-1"].hello.facts["pid"]
        finally:
            runtime.stop()
    assert kill.killed and again != kill.killed
    assert outcome.summary.model_sha256 == want
    assert not any(record.failures for record in outcome.history)
    left = [event for event in kill.events if isinstance(event, NodeChanged) and event.state in ("left", "lost")]
    assert "ray-1" in {event.node for event in left}
    (started,) = [event for event in kill.events if isinstance(event, RunStarted)]
    assert (started.runtime, started.workers) == ("ray", 2) and started.where.startswith("Ray cluster at ")
    assert cluster.is_initialized(), "a cluster that was there before stays"


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_room_for_are_refused(cluster: Any, linear: Make) -> None:
    with pytest.raises(NoCapacity) as caught:
        api.run(linear(runtime={"name": "ray", "workers": 64}), keep=False)
    text = str(caught.value)
    assert "64 workers of 1 CPU each do not fit the Ray cluster: it has 2 CPU and 0 GPU" in text
    assert "Use fewer --workers, or set runtime.cpus_per_worker" in text


@pytest.mark.slow
def test_a_resource_the_cluster_has_not_is_named(cluster: Any, linear: Make) -> None:
    runtime = {"name": "ray", "workers": 1, "gpus_per_worker": 0.5}
    with pytest.raises(NoCapacity, match=r"1 workers of 1 CPU and 0\.5 GPU each do not fit"):
        api.run(linear(runtime=runtime), keep=False)


BARE = """
import sys
from fedloom.testing.linear import Config, Linear as Plain
class Linear(Plain):
    def train(self, job, inputs, shard, rule, rng):
        rooms = {"server", "client", "strategies", "simulation", "workloads", "selection", "reporting", "core", "cli"}
        ours = sorted(rooms & set(sys.modules))
        proto = str(getattr(sys.modules.get("proto"), "__file__", ""))
        if ours or %r in proto:
            raise RuntimeError(f"bare rooms: {ours} {proto}")
        return super().train(job, inputs, shard, rule, rng)
def build_workload(config, experiment):
    return Linear(config, experiment)
"""


@pytest.mark.slow
def test_no_bare_room_is_loaded_in_an_actor(cluster: Any, linear: Make, tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(BARE % str(ROOT / "proto"), encoding="utf-8")
    experiment = linear(rounds=1, workload={"name": str(tmp_path / "bare.py")}, runtime={"name": "ray", "workers": 1})
    assert api.run(experiment, keep=False).summary.status == "done"
