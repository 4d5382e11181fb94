"""A Ray cluster of two nodes loses one during a run: its agent's work is done by the other, and the bits stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.simulation.ray_privacy import DECIDED, MODE, OWN_TOKEN, TOKEN

Make = Callable[..., Experiment]
PROGRAM = """
import json, sys, threading

from ray.cluster_utils import Cluster

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.events import NodeChanged, RoundFinished

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()


class Cut:
    events, killing = [], None

    def write(self, event):
        self.events.append(event)
        if isinstance(event, RoundFinished) and event.record.round == 2:
            (second,) = cluster.worker_nodes
            self.killing = threading.Thread(target=cluster.remove_node, args=(second, False))
            self.killing.start()

    def close(self):
        if self.killing is not None:
            self.killing.join()


cut, experiment = Cut(), Experiment.parse(json.load(sys.stdin))
summary = api.run(experiment.override([f"runtime.ray_address={cluster.address}"]), keep=False, sinks=[cut]).summary
rounds = [event.record for event in cut.events if isinstance(event, RoundFinished)]
found = {
    "status": summary.status,
    "sha256": summary.model_sha256,
    "gone": [each.node for each in cut.events if isinstance(each, NodeChanged) and each.state in ("left", "lost")],
    "failures": sum(len(record.failures) for record in rounds),
    "nodes": [len(record.nodes) for record in rounds],
}
print("found " + json.dumps(found), flush=True)
import ray
ray.shutdown()
cluster.shutdown()
"""
"""A run on two raylets of one CPU each, the head and another, of which the second is killed after the second round.

In a process of its own: one that has started Ray with a token joins no other.
"""


@pytest.mark.slow
def test_a_lost_node_changes_no_bit(linear: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (MODE, TOKEN, OWN_TOKEN, DECIDED):
        monkeypatch.delenv(name, raising=False)
    lossy = linear(rounds=10, workload={"sleep_s": 0.3}, runtime={"name": "ray", "workers": 2})
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        input=json.dumps(lossy.to_dict()),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "support")},
        capture_output=True,
        encoding="utf-8",
        timeout=150,
        check=False,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("found ")]
    assert lines, ran.stdout + ran.stderr
    found = json.loads(lines[0].removeprefix("found "))
    want = api.run(linear(rounds=10), keep=False).summary.model_sha256
    assert (found["status"], found["sha256"]) == ("done", want)
    assert len(set(found["gone"]) & {"ray-1", "ray-2"}) >= 1
    assert found["failures"] == 0
    nodes = found["nodes"]
    assert len(nodes) == 10 and nodes[0] == 2 and nodes[-1] == 1, "the last rounds were one agent's work"
