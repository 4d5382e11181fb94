"""The port anybody may call: who holds on to it does not keep others out for long."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from members import Members, members

from fedloom.client.link import connect_trusting
from fedloom.proto.v1 import enroll_pb2 as pb
from fedloom.proto.v1.enroll_pb2_grpc import EnrollStub
from fedloom.server.access import listening
from fedloom.server.access.calls import ENROLL_THREADS

CONNECTIONS = 6


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Members]:
    """A server whose strangers may stay for a second."""
    for name, value in {"CONNECTIONS": CONNECTIONS, "CONNECTION_S": 0.6, "GRACE_S": 0.3, "REQUEST_S": 0.1}.items():
        monkeypatch.setattr(listening, f"ENROLL_{name}", value)
    with members(tmp_path) as made:
        yield made


def address(fleet: Members) -> str:
    return f"127.0.0.1:{fleet.server.enroll_port}"


def authority(fleet: Members, timeout_s: float) -> str:
    """The answer to a stranger's sound question."""
    with contextlib.closing(connect_trusting(address(fleet), fleet.admin.authority)) as channel:
        reply = EnrollStub(channel).Authority(pb.AuthorityRequest(), timeout=timeout_s, wait_for_ready=True)
        return str(reply.certificate_pem)


def test_calls_that_never_say_what_they_want_are_ended(fleet: Members) -> None:
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with contextlib.closing(connect_trusting(address(fleet), fleet.admin.authority)) as channel:
        silent = channel.stream_unary("/fedloom.proto.v1.Enroll/Join", None, None)
        calls = [silent.future(nothing(), timeout=60) for _ in range(ENROLL_THREADS)]
        try:
            assert authority(fleet, 20.0) == fleet.admin.authority.decode()
            for call in calls:
                with pytest.raises(grpc.RpcError) as caught:
                    call.result(20.0)
                assert caught.value.code().name != "DEADLINE_EXCEEDED"
        finally:
            over.set()


def test_connections_that_say_nothing_make_room_again(fleet: Members) -> None:
    port = ("127.0.0.1", fleet.server.enroll_port)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(port, timeout=20)) for _ in range(3 * CONNECTIONS)]
        assert authority(fleet, 20.0) == fleet.admin.authority.decode()
        for connection in held:  # closed by the server, every one
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass
