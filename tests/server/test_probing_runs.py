"""Two runs whose candidates train before the cohort is chosen, on one node: each is served as if it were alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedloom import api
from fedloom.client.agent import Agent
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.memory import MemoryLimits
from fedloom.client.setup import NodeSetup
from fedloom.core.config import Experiment
from fedloom.core.events import ClientsDone
from fedloom.core.messages import Channel, PayloadRef
from fedloom.core.records import Record
from fedloom.server.rounds.session import Outcome, run_session
from fedloom.server.store.memory_run_store import MemoryRunStore
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.faults import ForwardingChannel
from fedloom.testing.fleet import TOKEN, fleet_access, quick_server, wait_until

Make = Callable[..., Experiment]
ROUNDS, CANDIDATES, COHORT = 3, 6, 2
FEATURES = 33_000
"""Enough that a model is not sent inside a message: 132,004 bytes with the bias."""
UPDATE_BYTES = 4 * FEATURES + 4


class Counting(ForwardingChannel):
    """A channel that writes down what is fetched: its digest where the reference has one, and the record."""

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self.fetched: list[tuple[str, Record]] = []

    def fetch(self, ref: PayloadRef) -> Record:
        record = self.inner.fetch(ref)
        self.fetched.append((ref.sha256, ref.record or record))
        return record


class InStep:
    """A sink of all runs in which each waits, once its candidates have reported, until those of the others have.

    The node has then parked all runs' updates before any collects: the order that needs a place for each.
    """

    def __init__(self, runs: int) -> None:
        self._all = threading.Barrier(runs)

    def write(self, event: Any) -> None:
        if isinstance(event, ClientsDone) and event.done == event.cohort == CANDIDATES:
            self._all.wait(60)

    def close(self) -> None:
        pass


@pytest.fixture
def probing(linear: Make) -> Make:
    """Experiments in which all candidates train and the two whose models moved farthest are collected."""

    def make(seed: int) -> Experiment:
        return linear(
            seed=seed,
            rounds=ROUNDS,
            cohort=COHORT,
            selection={"name": "update_norm", "candidates": CANDIDATES},
            workload={"features": FEATURES, "learning_rate": 1e-6},
            round={"group_size": CANDIDATES},
            evaluation={"every": 1, "parts": 1},
        )

    return make


@contextlib.contextmanager
def one_node(kind: str, limits: MemoryLimits | None = None) -> Iterator[tuple[Any, Counting]]:
    """A server, and the only agent it has."""
    with quick_server(shared_memory=kind == "shared", lost_after_s=60.0) as server:
        address = f"127.0.0.1:{server.listen(token=TOKEN)}"
        inner: Channel = InProcessChannel(server.coordinator) if kind == "process" else GrpcChannel(address, TOKEN)
        channel = Counting(inner)
        agent = Agent(channel, "only", NodeSetup(memory=limits or MemoryLimits()), give_up_s=10)
        worker = threading.Thread(target=agent.run)
        worker.start()
        try:
            yield server.coordinator, channel
            kept = agent._executor
            wait_until(
                lambda: not len(kept._parked) and not kept._inputs.num_bytes, 10, "the end of what was kept for runs"
            )
        finally:
            agent.stop()
            worker.join()


def at_once(coordinator: Any, experiments: list[Experiment]) -> list[Outcome]:
    """Run them all at the same time."""
    outcomes: dict[int, Outcome] = {}
    in_step = InStep(len(experiments))

    def work(index: int, experiment: Experiment) -> None:
        store = MemoryRunStore(f"run-{index}")
        store.begin(experiment)
        fleet = fleet_access(coordinator, patience_s=10)
        outcomes[index] = run_session(experiment, store, fleet, [in_step], stop=threading.Event())

    threads = [threading.Thread(target=work, args=item) for item in enumerate(experiments)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[index] for index in range(len(experiments))]


@pytest.mark.parametrize("kind", ["process", "shared", "remote"])
def test_two_probing_runs_on_one_node_retrain_nothing_and_read_each_input_once(probing: Make, kind: str) -> None:
    experiments = [probing(1), probing(2)]
    with one_node(kind) as (coordinator, channel):
        outcomes = at_once(coordinator, experiments)
    for experiment, outcome in zip(experiments, outcomes, strict=True):
        assert outcome.error is None
        alone = api.run(experiment, keep=False)
        assert outcome.summary.model_sha256 == alone.summary.model_sha256
        assert [record.cohort for record in outcome.history] == [record.cohort for record in alone.history]
        assert [record.evaluation for record in outcome.history] == [record.evaluation for record in alone.history]
        assert all(record.sections == {} and not record.failures for record in outcome.history)
        assert [record.local_trainings for record in outcome.history] == ROUNDS * [CANDIDATES]
    # Candidates read the model, then the model they made is evaluated. The cohort's own exchange reads nothing new, and
    # over the network, where content has a digest, the next round's candidates read what was evaluated.
    contents = [digest or id(record) for digest, record in channel.fetched]
    if kind == "process":
        assert len(contents) == len(set(contents)) == 2 * 2 * ROUNDS
    if kind == "remote":
        assert len(contents) == len(set(contents)) == 2 * (ROUNDS + 1)


@pytest.mark.parametrize("room", [CANDIDATES, CANDIDATES - 1, COHORT, 0])
def test_updates_beyond_the_limit_are_trained_again_oldest_first_and_the_record_names_the_clients(
    probing: Make, room: int
) -> None:
    """With room for n of d updates the first d - n candidates of a round lose theirs, and those chosen train again."""
    experiment = probing(4)
    with one_node("process", limits=MemoryLimits(parked_bytes=room * UPDATE_BYTES)) as (coordinator, _):
        (outcome,) = at_once(coordinator, [experiment])
    assert outcome.summary.model_sha256 == api.run(experiment, keep=False).summary.model_sha256
    for record in outcome.history:
        gone = record.candidates[: CANDIDATES - room]
        again = [client for client in record.cohort if client in gone]
        assert record.sections == ({"parking": {"retrained": again}} if again else {})
        assert record.local_trainings == CANDIDATES + len(again)
    assert bool(sum(len(record.sections) for record in outcome.history)) == (room < CANDIDATES)


def test_with_two_runs_the_one_that_parked_first_loses_first(probing: Make) -> None:
    """Both park before either collects: with room for one run's updates, those parked before the last six are gone."""
    experiments = [probing(1), probing(2)]
    limits = MemoryLimits(parked_bytes=CANDIDATES * UPDATE_BYTES)
    with one_node("process", limits=limits) as (coordinator, _):
        outcomes = at_once(coordinator, experiments)
    retrained = 0
    for experiment, outcome in zip(experiments, outcomes, strict=True):
        assert outcome.summary.model_sha256 == api.run(experiment, keep=False).summary.model_sha256
        for record in outcome.history:
            assert record.sections in ({}, {"parking": {"retrained": record.cohort}})
            retrained += bool(record.sections)
    assert retrained == ROUNDS, "in each round one of the two"
