"""Clients' state kept at their node: the bits of state kept on the server, nothing of it sent, nothing left behind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support_paths import SUPPORT

from fedloom import api
from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.setup import NodeSetup
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, Interrupted, RunFailed
from fedloom.core.events import RoundFinished
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.testing.fleet import TOKEN, fleet_access, quick_server, wait_until

SIZE = 40_000
"""Elements of the model and of what each client keeps: 160,000 bytes, more than travels inside a message."""


def experiment(home: str, **values: Any) -> Experiment:
    workload = {"name": str(SUPPORT / "counting.py"), "size": SIZE}
    strategy = {"name": str(SUPPORT / "odd_strategy.py"), **values.pop("strategy", {})}
    base = {"rounds": 6, "clients": 5, "cohort": 3, "runtime": {"name": "inline"}, "evaluation": {"every": 0}}
    return Experiment.parse(
        {**base, "strategy": strategy, "workload": workload, "round": {"state_home": home, "group_size": 1}, **values}
    )


@contextlib.contextmanager
def one_node(states: Path) -> Iterator[Any]:
    """A server with one agent on another machine, as far as payloads go."""
    with quick_server(shared_memory=False) as server:
        channel = GrpcChannel(f"127.0.0.1:{server.listen(token=TOKEN)}", TOKEN)
        agent = Agent(channel, "only", NodeSetup(states=states), give_up_s=10)
        worker = threading.Thread(target=agent.run)
        worker.start()
        try:
            yield server.coordinator
        finally:
            agent.stop()
            worker.join()


def run(coordinator: Any, one: Experiment, store: MemoryRunStore, *sinks: Any, stop: threading.Event) -> Outcome:
    return run_session(one, store, fleet_access(coordinator, patience_s=10), sinks, stop=stop)


def test_state_at_the_node_gives_the_same_bits_and_never_travels(tmp_path: Path) -> None:
    outcomes, kept, up = {}, {}, {}
    for home in ("server", "node"):
        one, store = experiment(home), MemoryRunStore(home)
        store.begin(one)
        with one_node(tmp_path / "states") as coordinator:
            outcomes[home] = run(coordinator, one, store, stop=threading.Event())
            assert outcomes[home].error is None
            wait_until(lambda: not list((tmp_path / "states").glob("*")), 60, "the end of the run's states")
        kept[home] = [client for client in range(5) if store.client(client, (99, 0)) is not None]
        up[home] = outcomes[home].summary.wire_bytes_up
    assert outcomes["node"].summary.model_sha256 == outcomes["server"].summary.model_sha256
    assert [record.metrics for record in outcomes["node"].history] == [r.metrics for r in outcomes["server"].history]
    asked = {client for record in outcomes["server"].history for client in record.cohort}
    assert kept == {"server": sorted(asked), "node": []}
    assert up["server"] - up["node"] > 6 * 3 * SIZE * 4, "six rounds of three clients' states"


def test_a_run_that_was_stopped_finds_its_clients_state_where_it_was(tmp_path: Path) -> None:
    """On a server that goes on: the agent is told that the run may come back."""

    class Stop:
        def __init__(self) -> None:
            self.event = threading.Event()

        def write(self, event: Any) -> None:
            if isinstance(event, RoundFinished) and event.record.round == 3:
                self.event.set()

        def close(self) -> None:
            pass

    want = api.run(experiment("server"), keep=False).summary.model_sha256
    one, store, stop = experiment("node"), MemoryRunStore("run"), Stop()
    store.begin(one)
    with one_node(tmp_path / "states") as coordinator:
        assert isinstance(run(coordinator, one, store, stop, stop=stop.event).error, Interrupted)
        again = run(coordinator, one, store, stop=threading.Event())
        assert again.error is None and again.summary.model_sha256 == want and len(again.history) == 6
        wait_until(lambda: not list((tmp_path / "states").glob("*")), 60, "the end of the run's states")


@pytest.mark.parametrize("every", [1, 2])
def test_a_simulation_that_failed_is_resumed_with_the_same_bits(tmp_path: Path, every: int) -> None:
    """From its last checkpoint, so that clients do again what their newest state has already seen."""
    want = api.run(experiment("server"), keep=False).summary.model_sha256
    failing = experiment("node", strategy={"finish_raises": 4}, checkpoint={"every": every})
    with pytest.raises(RunFailed):
        api.run(failing, out=tmp_path / "run")
    nodes = tmp_path / "state-home" / "fedloom" / "nodes"
    assert list(nodes.rglob("*.safetensors")), "the run may be resumed"
    text = (tmp_path / "run" / "experiment.toml").read_text(encoding="utf-8")
    (tmp_path / "run" / "experiment.toml").write_text(
        text.replace("finish_raises = 4", "finish_raises = 0"), encoding="utf-8"
    )
    assert api.resume(tmp_path / "run").summary.model_sha256 == want
    assert not list(nodes.rglob("*.safetensors")), "the run is over"
    assert not (tmp_path / "run" / "clients").exists()


def test_workers_of_a_simulation_are_one_node_as_far_as_state_goes(tmp_path: Path) -> None:
    """Which worker trains a client changes from round to round."""
    want = api.run(experiment("server"), keep=False).summary.model_sha256
    workers = experiment("node", runtime={"name": "process", "workers": 2})
    assert api.run(workers, keep=False).summary.model_sha256 == want
    nodes = tmp_path / "state-home" / "fedloom" / "nodes"
    assert nodes.is_dir() and not list(nodes.rglob("*.safetensors"))


def test_checkpoints_must_not_be_farther_apart_than_nodes_keep_states() -> None:
    assert experiment("node", checkpoint={"every": 2}) and experiment("server", checkpoint={"every": 3})
    with pytest.raises(ConfigError, match=r"checkpoint.every: expected at most 2 with round.state_home = .node., got"):
        experiment("node", checkpoint={"every": 3})
