"""Floods by one member or stranger, on loopback and bounded: an administrator is answered within a second meanwhile."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from flooded_site import BOUND_S, Site

from fedloom.client.admin import AdminClient
from fedloom.client.link import connect
from fedloom.core.identity import Identity
from fedloom.core.messages import PROTOCOL
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.testing.fleet import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with contextlib.closing(made.shell):
        yield made


def half_open(
    identity: Identity, method: str, count: int, *, channels: int = 1
) -> tuple[contextlib.ExitStack, Sequence[grpc.CallFuture[object]]]:
    """Start calls that never say what they are for."""
    stack, never = contextlib.ExitStack(), queue.SimpleQueue[bytes]()
    for _ in range(count):
        stack.callback(never.put, b"")
    metadata = (("fedloom-node", identity.name), ("fedloom-session", "s"))
    made = [stack.enter_context(contextlib.closing(connect(identity.address, identity))) for _ in range(channels)]
    calls = [
        made[number % channels]
        .stream_unary(f"/fedloom.proto.v1.{method}", None, None)
        .future(iter(never.get, b""), metadata=metadata, timeout=120)
        for number in range(count)
    ]
    return stack, calls


@pytest.mark.parametrize(
    ("role", "method"),
    [
        ("node", "Fleet/Upload"), ("node", "Fleet/Work"), ("node", "Fleet/Register"), ("node", "Fleet/Download"),
        ("node", "Admin/Revoke"), ("node", "Credentials/Renew"), ("user", "Control/Watch"), ("user", "Control/Submit"),
        ("user", "Credentials/Renew"),
    ],
)  # fmt: skip
def test_half_open_calls_of_one_member(site: Site, role: str, method: str) -> None:
    identity = site.joined("evil", role)
    if role == "node":
        with contextlib.closing(connect(identity.address, identity)) as channel:
            request = pb.RegisterRequest(protocol=PROTOCOL, node="evil", session="s").SerializeToString()
            channel.unary_unary("/fedloom.proto.v1.Fleet/Register", None, None)(request, timeout=10)
    before = site.threads()
    stack, calls = half_open(identity, method, 2000, channels=20)
    with stack:
        time.sleep(1.0)
        assert site.slowest_call_s() < BOUND_S
        assert site.threads() - before < 1000, "two thousand calls do not hold a thread each; idle ones are kept"
        with AdminClient(site.admin) as admin:
            begin = time.monotonic()
            admin.revoke("evil")
            assert time.monotonic() - begin < BOUND_S
        assert sum(call.done() for call in calls) > 0


def test_silent_connections_of_a_stranger(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(1500):
            stack.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=10))
        assert site.slowest_call_s(2.0) < BOUND_S


def test_silent_connections_end_in_seconds(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as silent:
        begin = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while silent.recv(4096):
                pass
        assert time.monotonic() - begin < 10.0


@pytest.mark.parametrize("held", [0, 4000])
def test_heartbeats_without_end(site: Site, held: int) -> None:
    """One node sends as many as its connection takes, each naming groups that were never assigned to it."""
    identity, over = site.joined("evil"), threading.Event()
    keys = [pb.GroupKey(run_id="r", round=1, exchange=0, index=number) for number in range(held)]
    batch = pb.FromAgentBatch(messages=[pb.FromAgent(heartbeat=pb.Heartbeat(held=keys))]).SerializeToString()
    metadata = (("fedloom-node", "evil"), ("fedloom-session", "s"))

    def beats() -> Iterator[bytes]:
        while not over.is_set():
            yield batch

    with contextlib.closing(connect(identity.address, identity)) as channel:
        request = pb.RegisterRequest(protocol=PROTOCOL, node="evil", session="s").SerializeToString()
        channel.unary_unary("/fedloom.proto.v1.Fleet/Register", None, None)(request, timeout=10)
        answers = channel.stream_stream("/fedloom.proto.v1.Fleet/Work", None, None)(beats(), metadata=metadata)
        threading.Thread(target=_read_all, args=(answers,), daemon=True).start()
        try:
            time.sleep(1.0)
            assert site.slowest_call_s(3.0) < BOUND_S
            assert site.memory_mb() < 1000
        finally:
            over.set()
            answers.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types


def _read_all(answers: Iterator[bytes]) -> None:
    with contextlib.suppress(grpc.RpcError):
        for _ in answers:
            pass


@pytest.mark.parametrize(
    ("role", "method"), [("user", "Control/ListRuns"), ("user", "Admin/ListMembers"), ("node", "Control/ListNodes")]
)
def test_calls_in_quick_succession(site: Site, role: str, method: str) -> None:
    identity, over, made = site.joined("evil", role), threading.Event(), list[int]()

    def call() -> None:
        with contextlib.closing(connect(identity.address, identity)) as channel:
            ask = channel.unary_unary(f"/fedloom.proto.v1.{method}", None, None)
            while not over.is_set():
                batch = [ask.future(b"", timeout=60) for _ in range(50)]
                for each in batch:
                    with contextlib.suppress(grpc.RpcError):
                        each.result(60)
                made.append(len(batch))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: sum(made) > 200)
        before = sum(made)
        assert site.slowest_call_s(1.0) < BOUND_S
        assert sum(made) > before + 200, "the flood went on meanwhile"
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
