"""What only a channel over gRPC can meet."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from fedloom.client.grpc_channel import LARGEST_MESSAGE, GrpcChannel
from fedloom.client.link import MAX_MESSAGE_BYTES
from fedloom.core.errors import BadMessage, LimitExceeded, ServerUnreachable
from fedloom.core.messages import Group, GroupKey, GroupResult, Heartbeat
from fedloom.core.records import ClientReport
from fedloom.testing.by_hand import ManualAgent, open_exchange, planned_groups
from fedloom.testing.fleet import quick_server, wait_until
from fedloom.testing.records import model_record

LARGE = 100_000
"""Elements of a record that does not fit into a message."""


def test_an_upload_to_a_restarted_server_asks_for_a_new_session_not_for_new_work() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    channel = GrpcChannel(f"127.0.0.1:{port}")
    with quick_server(shared_memory=False) as server:
        server.listen("127.0.0.1", port)
        hand = ManualAgent(channel, "n")
        hand.start()
        with open_exchange(server.coordinator, planned_groups(1.0)):
            key = hand.take(Group)[0].key
            assert channel.store(model_record(LARGE), "run").sha256
    with quick_server(shared_memory=False) as server:
        server.listen("127.0.0.1", port)
        with open_exchange(server.coordinator, planned_groups(1.0)) as opened:
            with pytest.raises(ServerUnreachable, match="was restarted and does not know this session"):
                channel.store(model_record(LARGE, value=2.0), "run")
            hand.open()
            channel.send(Heartbeat(groups=(key,)))
            wait_until(lambda: opened.was_assigned(0, "n"))
            assert channel.store(model_record(LARGE, value=2.0), "run").sha256
    channel.close()


def result(**fields: Any) -> GroupResult:
    report = ClientReport(**{"client": 1, "num_examples": 1, "seconds": 0.0, **fields})
    return GroupResult(key=GroupKey("run", 1, 0, 0), total=None, reports=(report,))


@pytest.mark.parametrize("fields", [{"num_examples": -5}, {"metrics": {5: 1.0}}, {"info": {"a": object()}}])
def test_what_cannot_be_encoded_never_reaches_the_stream(fields: dict[str, Any]) -> None:
    channel = GrpcChannel("127.0.0.1:1")
    with pytest.raises(BadMessage, match="a message cannot be encoded"):
        channel.send(result(**fields))
    assert channel._outbox.empty()


def test_a_message_larger_than_the_server_takes_never_reaches_the_stream() -> None:
    channel = GrpcChannel("127.0.0.1:1")
    with pytest.raises(LimitExceeded, match=f"expected at most {LARGEST_MESSAGE}"):
        channel.send(result(info={"a": "x" * LARGEST_MESSAGE}))
    assert channel._outbox.empty()


def test_messages_travel_together_as_far_as_one_batch_may_hold_them() -> None:
    channel = GrpcChannel("127.0.0.1:1")
    for _ in range(5):
        channel.send(result(info={"a": "x" * (LARGEST_MESSAGE * 2 // 5)}))
    channel._outbox.put(None)
    batches = list(channel._requests(channel._outbox))
    assert [len(batch.messages) for batch in batches] == [2, 2, 1]
    assert all(batch.ByteSize() < MAX_MESSAGE_BYTES for batch in batches)
