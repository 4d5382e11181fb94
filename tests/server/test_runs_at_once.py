"""Several runs at a time, each with the nodes its labels name, or sharing all: the bits are those of a run alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedloom import api
from fedloom.client.agent import Agent
from fedloom.core.config import Experiment
from fedloom.core.events import Event
from fedloom.core.history import RunSummary
from fedloom.core.messages import Group, Heartbeat, Hello
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.rounds.session import run_session
from fedloom.server.run_queue import RunQueue
from fedloom.server.run_views import Owner
from fedloom.server.store.disk_run_store import DiskRunStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.by_hand import open_exchange, planned_groups, run_spec
from fedloom.testing.fleet import fleet_access, wait_until

Make = Callable[..., Experiment]


class Labelled(InProcessChannel):
    """An agent's channel to a coordinator that knows the agent's labels."""

    def __init__(self, coordinator: Coordinator, **labels: str) -> None:
        super().__init__(coordinator)
        self._of, self._labels = coordinator, labels

    def open(self, hello: Hello) -> Any:
        welcome = super().open(hello)
        self._of.label(hello.node, self._labels)
        return welcome


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    coordinator = Coordinator(PayloadStore(None), heartbeat_s=0.1, grace_s=0.2, by_labels=True)
    yield coordinator
    coordinator.close()


@pytest.fixture
def runs(coordinator: Coordinator, tmp_path: Path) -> Iterator[RunQueue]:
    def run_one(store: DiskRunStore, emit: Callable[[Event], None], stop: threading.Event) -> RunSummary:
        return run_session(store.experiment(), store, fleet_access(coordinator), [Relay(emit)], stop=stop).summary

    queue = RunQueue(tmp_path / "state", run_one, max_concurrent_runs=3)
    agents = [
        Agent(Labelled(coordinator, site="north"), "n-1"),
        Agent(Labelled(coordinator, site="north"), "n-2"),
        Agent(Labelled(coordinator, site="south"), "s-1"),
    ]
    threads = [threading.Thread(target=agent.run) for agent in agents]
    for thread in threads:
        thread.start()
    wait_until(lambda: coordinator.online == 3, what="three agents")
    queue.start()
    yield queue
    queue.close()
    for agent in agents:
        agent.stop()
    for thread in threads:
        thread.join()


class Relay:
    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.write = emit

    def close(self) -> None:
        pass


def test_three_runs_at_once_each_on_its_nodes_with_the_bits_of_runs_alone(
    runs: RunQueue, linear: Make, tmp_path: Path
) -> None:
    labels: list[dict[str, str]] = [{"site": "north"}, {"site": "south"}, {}]
    experiments = [
        linear(name=f"run-{n}", seed=n + 1, rounds=12, fleet={"labels": own}, workload={"sleep_s": 0.005})
        for n, own in enumerate(labels)
    ]
    ids = [runs.submit(experiment.to_dict(), Owner(f"id-{n}", f"user-{n}")) for n, experiment in enumerate(experiments)]
    wait_until(lambda: [row["status"] for row in runs.rows()] == ["running"] * 3, 60, "all three at once")
    wait_until(lambda: [row["status"] for row in runs.rows()] == ["done"] * 3, 60, "the end")
    assert [row["owner"] for row in runs.rows()] == ["user-0", "user-1", "user-2"]
    allowed = [{"n-1", "n-2"}, {"s-1"}, {"n-1", "n-2", "s-1"}]
    for run_id, experiment, nodes in zip(ids, experiments, allowed, strict=True):
        store = DiskRunStore.open(tmp_path / "state" / "runs" / run_id)
        history = store.rounds()
        assert [record.round for record in history] == list(range(1, 13))
        assert history[-1].evaluation is not None
        want = api.run(experiment, keep=False)
        assert store.folder is not None
        summary = RunSummary.model_validate_json((store.folder / "summary.json").read_text(encoding="utf-8"))
        assert summary.model_sha256 == want.summary.model_sha256
        assert set(history[5].nodes) <= nodes


def test_labels_decide_who_gets_a_group_and_may_change(coordinator: Coordinator) -> None:
    north = InProcessChannel(coordinator)
    north.open(Hello(node="n", session="1"))
    north.send(Heartbeat())
    with open_exchange(coordinator, planned_groups(1.0), run=run_spec("labelled"), labels={"site": "south"}):
        assert north.receive(0.1) is None
        coordinator.label("n", {"site": "south"})
        messages = [north.receive(1.0), north.receive(1.0)]
        assert any(isinstance(message, Group) for message in messages)


def test_two_runs_share_the_nodes_evenly(coordinator: Coordinator) -> None:
    """Of eight nodes with room for three groups each, a run that came second gets half."""
    channels = [InProcessChannel(coordinator) for _ in range(8)]
    with (
        open_exchange(coordinator, planned_groups(*[1.0] * 20), run=run_spec("first")) as first,
        open_exchange(coordinator, planned_groups(*[1.0] * 20), run=run_spec("second")) as second,
    ):
        for n, channel in enumerate(channels):
            channel.open(Hello(node=f"n-{n}", session="1"))
            channel.send(Heartbeat())
        assert first.in_work == second.in_work == 12, "three groups for each node, of either run as many"
