"""A member that asks for more than its work can need, against a server with members, over TLS: it is refused."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from members import Members, members

from fedloom.client.grpc_channel import GrpcChannel
from fedloom.client.link import connect
from fedloom.core.identity import Identity
from fedloom.core.messages import PROTOCOL, Ack, Group, Heartbeat, PayloadRef, Refusal
from fedloom.core.records import Job, Mean
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.server.fleet import node_table
from fedloom.server.fleet.dispatch import RETRY_S
from fedloom.server.fleet.planned import PlannedGroup
from fedloom.testing.by_hand import ManualAgent, group_result, next_answer, open_exchange, planned_groups, sum_of_one
from fedloom.testing.fleet import wait_until
from fedloom.testing.records import model_record

PREFIX = "/fedloom.proto.v1."


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def identity(fleet: Members) -> Identity:
    return fleet.joined("greedy")


@pytest.fixture
def hand(fleet: Members, identity: Identity) -> Iterator[ManualAgent]:
    agent = ManualAgent(GrpcChannel(fleet.address, identity=lambda: identity), "greedy")
    agent.start()
    yield agent
    agent.channel.close()


def offset(fleet: Members, identity: Identity, size: int) -> str:
    """The status of announcing an upload in the agent's session."""
    session = fleet.server.coordinator.nodes()["greedy"].hello.session
    metadata = (("fedloom-node", "greedy"), ("fedloom-session", session))
    with contextlib.closing(connect(fleet.address, identity)) as channel:
        request = pb.UploadRequest(sha256="0" * 64, size=size).SerializeToString()
        try:
            channel.unary_unary(PREFIX + "Fleet/UploadOffset", None, None)(request, metadata=metadata, timeout=10)
        except grpc.RpcError as exc:
            return str(exc.code().name)
    return "OK"


def test_an_upload_is_for_a_group_no_larger_than_it_can_need_and_gone_with_its_node(
    fleet: Members, identity: Identity, hand: ManualAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_table, "UPLOADS_S", 0.3)
    assert offset(fleet, identity, 1000) == "NOT_FOUND", "it has no group"
    with open_exchange(fleet.server.coordinator, planned_groups(1.0)):
        hand.take(Group)
        assert offset(fleet, identity, 15 << 30) == "RESOURCE_EXHAUSTED"
        assert offset(fleet, identity, 10 << 20) == "OK" and fleet.server.payloads._uploads
        hand.channel.close()
        wait_until(lambda: not fleet.server.payloads._uploads, 60)


def test_a_state_nobody_asked_for_is_refused(fleet: Members, hand: ManualAgent) -> None:
    group = PlannedGroup(jobs=(Job(round=1, client=0),), work=1.0, keeps_states=False)
    with open_exchange(fleet.server.coordinator, [group]) as opened:
        key = hand.take(Group)[0].key
        state = hand.store(model_record(100_000))
        hand.channel.send(group_result(key, 0, total=hand.store(sum_of_one(0)), states={0: state}))
        (ack,) = hand.take(Ack)
        assert ack.status == "rejected" and "none was asked for" in ack.message
        assert opened.answers.empty() and not fleet.server.payloads._uploads


@pytest.mark.parametrize("what", ["metrics", "info", "name"])
def test_a_report_beyond_its_limits_is_refused_and_the_node_serves_on(
    fleet: Members, hand: ManualAgent, what: str
) -> None:
    with open_exchange(fleet.server.coordinator, planned_groups(1.0)) as opened:
        key = hand.take(Group)[0].key
        sound = group_result(key, 0, total=hand.store(sum_of_one(0)))
        more = {
            "metrics": {"metrics": {f"m{n}": Mean(1.0, 1.0) for n in range(100_000)}},
            "info": {"info": {"x": "y" * (5 << 20)}},
            "name": {"metrics": {"m" * 10_000: Mean(1.0, 1.0)}},
        }[what]
        hand.channel.send(replace(sound, reports=(replace(sound.reports[0], **more),)))  # type: ignore[arg-type]
        (ack,) = hand.take(Ack)
        assert ack.status == "rejected" and opened.answers.empty() and not opened.done


def test_a_refusal_that_ends_at_once_is_asked_again_once_a_second(fleet: Members, hand: ManualAgent) -> None:
    with open_exchange(fleet.server.coordinator, planned_groups(1.0)) as opened:
        asked, end = 0, time.monotonic() + 2.2 * RETRY_S
        while time.monotonic() < end:
            message = hand.channel.receive(0.05)
            if isinstance(message, Group):
                asked += 1
                hand.channel.send(Refusal(key=message.key, kind="hours", reason="no", retry_s=1e-6))
            else:
                hand.channel.send(Heartbeat())
        assert 1 <= asked <= 4 and opened.answers.empty()


def test_facts_without_end_are_refused(fleet: Members, identity: Identity) -> None:
    with contextlib.closing(connect(fleet.address, identity)) as channel:
        register = channel.unary_unary(PREFIX + "Fleet/Register", None, None)
        for facts in ('{"x": "' + "y" * 16_000 + '"}', "[" * 10_000, '{"a":' * 3000):
            request = pb.RegisterRequest(protocol=PROTOCOL, node="greedy", session="s", facts_json=facts)
            with pytest.raises(grpc.RpcError) as caught:
                register(request.SerializeToString(), timeout=10)
            assert caught.value.code().name == "INVALID_ARGUMENT"
    assert "greedy" not in fleet.server.coordinator.nodes()


def test_a_sum_larger_than_it_says_or_of_nothing_is_refused(fleet: Members, hand: ManualAgent) -> None:
    with open_exchange(fleet.server.coordinator, planned_groups(1.0)) as opened:
        key = hand.take(Group)[0].key
        for total in (PayloadRef(size=1 << 40, sha256="0" * 64), PayloadRef(size=0, shared="../../etc/passwd")):
            hand.channel.send(group_result(key, 0, total=total))
        assert {ack.status for ack in hand.take(Ack, 2)} <= {"rejected", "stale"}
        assert opened.answers.empty()
    with open_exchange(fleet.server.coordinator, planned_groups(1.0), round=2) as opened:
        key = hand.take(Group, 2)[1].key
        hand.channel.send(group_result(key, 0, total=hand.store(sum_of_one(0))))
        assert next_answer(opened).node == "greedy", "it is served all the same"
