"""What only a channel over gRPC can meet."""

from __future__ import annotations

import socket

import pytest

from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core.errors import ServerUnreachable
from fedloom.core.messages import Hello
from fedloom.testing.fleet import quick_server
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
        channel.open(Hello(node="n", session="of-the-first"))
        assert channel.store(model_record(LARGE), "run").sha256
    with quick_server(shared_memory=False) as server:
        server.listen("127.0.0.1", port)
        with pytest.raises(ServerUnreachable, match="was restarted and does not know this session"):
            channel.store(model_record(LARGE, value=2.0), "run")
        channel.open(Hello(node="n", session="of-the-second"))
        assert channel.store(model_record(LARGE, value=2.0), "run").sha256
    channel.close()
