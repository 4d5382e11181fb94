"""A Ray cluster of two nodes loses one during a run: its agent's work is done by the other, and the bits stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.events import NodeChanged, RoundFinished

Make = Callable[..., Experiment]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two raylets of one CPU each on this machine, the head and another."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent / "support"))
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


class Cut:
    """Kills the second raylet, with the agent on it, after the second round."""

    def __init__(self, cluster: Any) -> None:
        self.events: list[Any] = []
        self._cluster = cluster
        self._killing: threading.Thread | None = None

    def write(self, event: Any) -> None:
        self.events.append(event)
        if isinstance(event, RoundFinished) and event.record.round == 2:
            (second,) = self._cluster.worker_nodes
            self._killing = threading.Thread(target=self._cluster.remove_node, args=(second, False))
            self._killing.start()

    def close(self) -> None:
        if self._killing is not None:
            self._killing.join()


@pytest.mark.slow
def test_a_lost_node_changes_no_bit(cluster: Any, linear: Make) -> None:
    want = api.run(linear(rounds=10), keep=False).summary.model_sha256
    cut = Cut(cluster)
    runtime = {"name": "ray", "workers": 2, "ray_address": cluster.address}
    lossy = linear(rounds=10, workload={"sleep_s": 0.3}, runtime=runtime)
    summary = api.run(lossy, keep=False, sinks=[cut]).summary
    assert (summary.status, summary.model_sha256) == ("done", want)
    gone = {event.node for event in cut.events if isinstance(event, NodeChanged) and event.state in ("left", "lost")}
    assert len(gone & {"ray-1", "ray-2"}) >= 1
    rounds = [event.record for event in cut.events if isinstance(event, RoundFinished)]
    assert len(rounds) == 10 and not any(record.failures for record in rounds)
    assert len(rounds[0].nodes) == 2 and len(rounds[-1].nodes) == 1, "the last rounds were one agent's work"
