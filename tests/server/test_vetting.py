"""Sums from other machines are looked at before they count, and a node cannot make the server keep what it likes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedloom import api
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.accumulators import MetricsOnly, RunningMean, UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import BadMessage, BadUpdate, LimitExceeded
from fedloom.core.messages import (
    PROTOCOL,
    Ack,
    Channel,
    Group,
    GroupKey,
    GroupResult,
    Heartbeat,
    Hello,
    PayloadRef,
    ToAgent,
)
from fedloom.core.records import Record, Update
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.server.fleet import node_table, nodes
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.payloads import PayloadStore
from fedloom.server.fleet.vetting import vet_sum
from fedloom.simulation.in_process import InProcessChannel
from fedloom.testing.by_hand import ManualAgent, group_result, next_answer, open_exchange, planned_groups, sum_of_one
from fedloom.testing.faults import ForwardingChannel
from fedloom.testing.fleet import TOKEN, quick_server, run_on_fleet, wait_until
from fedloom.testing.records import model_record

Make = Callable[..., Experiment]


def changed(record: Record, array: Any = None, **info: Any) -> Record:
    groups = {"model": {"w": record.groups["model"]["w"] if array is None else np.asarray(array)}}
    return Record(groups, {**record.info, **info})


class TestASum:
    MODEL = model_record(3)
    SUM = sum_of_one(0)

    def test_of_the_reported_clients_is_accepted(self) -> None:
        vet_sum(RunningMean, self.MODEL, self.SUM, [0])
        vet_sum(RunningMean, None, self.SUM, [0])

    @pytest.mark.parametrize(
        ("total", "words"),
        [
            (Record(), "not a RunningMean: KeyError"),
            (changed(SUM, count=None), "not a RunningMean: TypeError"),
            (changed(SUM, dtypes=3), "not a RunningMean: AttributeError"),
            (changed(SUM, count=2), "of 2 updates, but the result lists clients"),
            (changed(SUM, count=0), "of 0 updates"),
            (changed(SUM, weight=float("nan")), "weight must be a number of at least 0, got nan"),
            (changed(SUM, weight=-1.0), "got -1.0"),
            (changed(SUM, np.array([1, np.nan, 1], np.float32)), "'w' of group 'model' is not finite"),
            (changed(SUM, np.array([1, np.inf, 1], np.float32)), "is not finite"),
            (changed(SUM, np.ones(4, np.float32)), r"float32 \(4,\); .* is float32 \(3,\)"),
            (changed(SUM, np.ones((3, 1), np.float32)), r"\(3, 1\)"),
            (changed(SUM, np.ones(3, np.float64)), "float64"),
        ],
    )
    def test_that_is_none_is_refused(self, total: Record, words: str) -> None:
        with pytest.raises(BadUpdate, match=words):
            vet_sum(RunningMean, self.MODEL, total, [0])

    def test_of_updates_apart_is_of_the_reported_clients(self) -> None:
        apart = UpdateList()
        for client in (4, 2):
            apart.add(Update(num_examples=1, groups=self.MODEL.groups), 1.0, client)
        vet_sum(UpdateList, self.MODEL, apart.record(), [2, 4])
        with pytest.raises(BadUpdate, match=r"lists clients \[2, 5\]"):
            vet_sum(UpdateList, self.MODEL, apart.record(), [2, 5])
        with pytest.raises(BadUpdate, match="not a UpdateList: KeyError"):
            vet_sum(UpdateList, self.MODEL, Record({}, apart.record().info), [2, 4])

    def test_of_metrics_counts_its_clients(self) -> None:
        vet_sum(MetricsOnly, self.MODEL, Record(info={"count": 2}), [0, 1])
        with pytest.raises(BadUpdate, match="of 1 updates"):
            vet_sum(MetricsOnly, self.MODEL, Record(info={"count": 1}), [0, 1])


class Lying(ForwardingChannel):
    """A channel that changes every sum, though not the initial model: whoever is asked for that one is believed."""

    def __init__(self, inner: Channel, change: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(inner)
        self._change, self._round = change, 0

    def receive(self, timeout_s: float) -> ToAgent | None:
        message = self.inner.receive(timeout_s)
        self._round = message.key.round if isinstance(message, Group) else self._round
        return message

    def store(self, record: Record, run_id: str) -> PayloadRef:
        if not self._round:
            return self.inner.store(record, run_id)
        groups = {g: {n: self._change(array) for n, array in arrays.items()} for g, arrays in record.groups.items()}
        return self.inner.store(Record(groups, record.info), run_id)


@pytest.mark.parametrize("change", [lambda a: np.full_like(a, np.nan), lambda a: np.zeros((*a.shape, 2), a.dtype)])
def test_a_node_that_lies_changes_nothing_and_is_named(linear: Make, change: Callable[[Any], Any]) -> None:
    """It is given a group of every exchange once; the honest one does them all."""
    experiment = linear(rounds=4, round={"group_size": 2})
    want = api.run(experiment, keep=False).summary.model_sha256
    count = iter(range(100))

    def first_lies(channel: Channel) -> Any:
        return Lying(channel, change) if next(count) == 0 else channel

    outcome = run_on_fleet(experiment, workers=2, shared_memory=False, wrap=first_lies)
    assert outcome.error is None
    assert outcome.summary.model_sha256 == want
    assert not any(record.failures for record in outcome.history)
    reported = [record.refusals for record in outcome.history if record.refusals]
    assert reported and all(
        refusals.keys() == {"agent-0"} and "BadUpdate" in refusals["agent-0"] for refusals in reported
    )


@pytest.fixture
def coordinator() -> Iterator[Coordinator]:
    coordinator = Coordinator(PayloadStore(None, max_payload_bytes=1000), heartbeat_s=0.1)
    yield coordinator
    coordinator.close()


def join(coordinator: Coordinator, name: str) -> ManualAgent:
    hand = ManualAgent(InProcessChannel(coordinator), name)
    hand.open()
    hand.channel.send(Heartbeat())
    return hand


class TestBounds:
    def test_a_node_whose_result_was_refused_gets_no_more_of_the_exchange_while_there_is_another(
        self, coordinator: Coordinator
    ) -> None:
        bad = join(coordinator, "a")
        with open_exchange(coordinator, planned_groups(3.0, 2.0, 1.0)) as opened:
            key = bad.take(Group)[0].key
            good = join(coordinator, "b")
            wait_until(lambda: coordinator.nodes()["b"].online)
            bad.channel.send(replace(group_result(key, 0), reports=()))
            assert bad.take(Ack, status="rejected")
            assert opened.refusals["a"].kind == "result" and "expected clients [0]" in opened.refusals["a"].reason
            for index in range(3):
                group = good.take(Group, index + 1)[index]
                good.channel.send(group_result(group.key, group.jobs[0].client))
            assert {next_answer(opened).node for _ in range(3)} == {"b"}
            assert opened.reassigned == 1

    def test_an_agent_that_reads_nothing_is_let_go(
        self, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nodes, "MAX_UNREAD", 50)
        overflowed = join(coordinator, "deaf")
        mailbox = coordinator.nodes()["deaf"].mailbox
        assert mailbox is not None
        for number in range(200):
            overflowed.channel.send(GroupResult(key=GroupKey("nobody", number, 0, 0), total=None))
        assert mailbox._queue.qsize() <= 51
        wait_until(lambda: not coordinator.nodes()["deaf"].online)

    def test_agents_that_are_away_are_forgotten_before_there_are_too_many(
        self, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(node_table, "MAX_NODES", 20)
        stays = join(coordinator, "stays")
        for number in range(100):
            coordinator.register(Hello(node=f"passing-{number}", session="s"), "remote")
        assert len(coordinator.nodes()) <= 20 and "stays" in coordinator.nodes()
        stays.channel.close()

    def test_connected_agents_are_not_forgotten(
        self, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(node_table, "MAX_NODES", 3)
        for name in "abc":
            join(coordinator, name)
        with pytest.raises(LimitExceeded, match="3 agents are connected"):
            coordinator.register(Hello(node="d", session="s"), "remote")
        coordinator.register(Hello(node="a", session="again"), "remote")

    def test_what_a_node_uploads_and_never_uses_is_bounded(self, coordinator: Coordinator) -> None:
        store = coordinator.payloads
        frames = [bytes([index]) * 300 for index in range(4)]
        for frame in frames[:3]:
            assert store.upload("n", hashlib.sha256(frame).hexdigest(), 300, 0, [frame]) == 300
        with pytest.raises(LimitExceeded, match="900 bytes of node 'n' wait"):
            store.upload("n", hashlib.sha256(frames[3]).hexdigest(), 300, 0, [frames[3]])
        assert store.upload("other", hashlib.sha256(frames[3]).hexdigest(), 300, 0, [frames[3]]) == 300

    def test_long_heartbeats_and_introductions_are_refused(self) -> None:
        key = pb.GroupKey(run_id="r", round=1)
        many = pb.FromAgent(heartbeat=pb.Heartbeat(held=[key] * (codec.MAX_LISTED + 1)))
        with pytest.raises(BadMessage, match="at most 4096 groups and runs, got more"):
            codec.read_from_agent(many, "n")
        facts = '{"x":"' + "y" * codec.MAX_FACTS + '"}'
        with pytest.raises(BadMessage, match="facts: expected at most"):
            codec.read_hello(pb.RegisterRequest(protocol=PROTOCOL, node="n", session="s", facts_json=facts))


def test_an_agent_over_the_network_is_vetted_and_one_on_this_host_trusted() -> None:
    """Who shares the server's memory could change it after any check."""
    seen: list[str] = []
    for shared in (True, False):
        with quick_server(shared_memory=shared) as server:
            address = f"127.0.0.1:{server.listen(token=TOKEN)}"
            hand = ManualAgent(GrpcChannel(address, TOKEN), "n")
            hand.open()
            hand.channel.send(Heartbeat())
            with open_exchange(server.coordinator, planned_groups(1.0)) as opened:
                opened.vet = lambda total, clients: seen.append("looked")
                key = hand.take(Group)[0].key
                hand.channel.send(group_result(key, 0, total=hand.channel.store(sum_of_one(0), "run")))
                opened.answers.get(timeout=5)
            hand.channel.close()
        assert len(seen) == (0 if shared else 1)
