"""Strangers on the wire: every method gets frames that are cut, too big, out of order, repeated or random.

Each gets a status of the catalogue, nothing changes, and a real agent is served afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_paths import LINEAR

from fedloom.client.control import ControlClient
from fedloom.client.grpc_channel import GrpcChannel
from fedloom.core import frames
from fedloom.core.config import Experiment
from fedloom.core.errors import FedloomError, NotFound, Unauthenticated, UsageError
from fedloom.core.history import RunSummary
from fedloom.core.messages import PROTOCOL, Heartbeat, Hello, PayloadRef
from fedloom.core.records import Job, Record
from fedloom.proto.v1 import control_pb2 as control_pb
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.server.access.call_context import CallContext
from fedloom.server.access.listening import MAX_MESSAGE_BYTES
from fedloom.server.app import Server
from fedloom.server.fleet.open_exchange import OpenExchange
from fedloom.server.fleet.planned import PlannedGroup
from fedloom.server.run_queue import RunQueue
from fedloom.testing.by_hand import next_answer, open_exchange, planned_groups, run_spec, sum_of_one
from fedloom.testing.fleet import TOKEN, quick_server, running_agents, wait_until
from fedloom.testing.records import records_of_every_dtype

Make = Callable[..., Experiment]
FLEET, CONTROL = "/fedloom.proto.v1.Fleet/", "/fedloom.proto.v1.Control/"
MIB = 1 << 20


@dataclass
class Stranger:
    """Calls with raw bytes."""

    server: Server
    channel: grpc.Channel
    stack: contextlib.ExitStack

    def metadata(self, node: str = "n", session: str = "s", token: str = TOKEN) -> tuple[tuple[str, str], ...]:
        return (("fedloom-token", token), ("fedloom-node", node), ("fedloom-session", session))

    def unary(self, path: str, request: bytes, **who: str) -> bytes:
        return bytes(self.channel.unary_unary(path, None, None)(request, metadata=self.metadata(**who), timeout=10))

    def register(self, node: str = "n", session: str = "s", protocol: int = PROTOCOL) -> None:
        request = pb.RegisterRequest(protocol=protocol, node=node, session=session)
        self.unary(FLEET + "Register", request.SerializeToString())

    def register_with_work(self, node: str = "n", inputs: Record | None = None) -> OpenExchange:
        """Register, and be assigned a group of a run of its own: who has none may send and read no payload."""
        self.register(node)
        coordinator = self.server.coordinator
        coordinator.attach(node, "s")
        group = PlannedGroup(jobs=(Job(round=1, client=0),), work=1.0, only=node)
        model = {"model": _model() if inputs is None else inputs}
        exchange = open_exchange(coordinator, [group], run=run_spec(f"of-{node}"), inputs=model)
        opened = self.stack.enter_context(exchange)
        coordinator.receive(node, "s", Heartbeat())
        wait_until(lambda: opened.was_assigned(0, node))
        return opened

    def upload(self, *chunks: bytes, **who: str) -> int:
        reply = self.channel.stream_unary(FLEET + "Upload", None, None)(
            iter(chunks), metadata=self.metadata(**who), timeout=10
        )
        return pb.UploadReply.FromString(reply).received

    def download(self, request: bytes, **who: str) -> bytes:
        call = self.channel.unary_stream(FLEET + "Download", None, None)(
            request, metadata=self.metadata(**who), timeout=10
        )
        return b"".join(call)

    def work(self, *messages: bytes, **who: str) -> list[pb.ToAgent]:
        """Send messages on a fresh stream and read until the server ends it."""
        call = self.channel.stream_stream(FLEET + "Work", None, None)(
            _then_wait(messages), metadata=self.metadata(**who), timeout=10
        )
        return [message for reply in call for message in pb.ToAgentBatch.FromString(reply).messages]


def _then_wait(messages: tuple[bytes, ...]) -> Iterator[bytes]:
    yield from messages
    threading.Event().wait(10)


def head(data: bytes, size: int | None = None, offset: int = 0, sha256: str | None = None) -> bytes:
    digest = sha256 if sha256 is not None else hashlib.sha256(data).hexdigest()
    size = len(data) if size is None else size
    return pb.UploadRequest(sha256=digest, size=size, offset=offset).SerializeToString()


def by_hand(port: int, headers: dict[bytes, bytes], message: bytes) -> bytes:
    """What a call is answered whose headers no gRPC library would send: HTTP/2 in three frames."""

    def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
        return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data

    usual = {b":method": b"POST", b":scheme": b"http", b":authority": b"x", b"te": b"trailers"}
    reported = {**usual, b"content-type": b"application/grpc", **headers}
    block = b"".join(b"\0" + bytes([len(key)]) + key + bytes([len(value)]) + value for key, value in reported.items())
    data = b"\0" + struct.pack(">I", len(message)) + message
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        connection.sendall(frame(1, 4, 1, block) + frame(0, 1, 1, data))
        answer = b""
        while b"grpc-message" not in answer:
            answer += connection.recv(4096) or pytest.fail(f"the connection ended after {answer!r}")
        return answer + connection.recv(4096) if answer.endswith(b"grpc-message") else answer


@contextlib.contextmanager
def refused(status: str, text: str = "") -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    details = caught.value.details()
    assert caught.value.code().name == status, (caught.value.code(), details)
    assert details is not None and text in details
    assert "Traceback" not in details


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, RunQueue, str]]:
    def never(store: Any, emit: Any, stop: threading.Event) -> RunSummary:
        raise AssertionError("no run is started here")

    with (
        quick_server(shared_memory=True, heartbeat_s=0.03, grace_s=0.1) as server,
        contextlib.closing(RunQueue(tmp_path_factory.mktemp("state"), never)) as runs,
    ):
        yield server, runs, f"127.0.0.1:{server.listen(token=TOKEN, runs=runs)}"


@pytest.fixture
def stranger(served: tuple[Server, RunQueue, str]) -> Iterator[Stranger]:
    server, runs, address = served
    options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    with grpc.insecure_channel(address, options=options) as channel, contextlib.ExitStack() as stack:
        yield Stranger(server, channel, stack)
    for node in server.coordinator.nodes():
        server.coordinator.leave(node, "", "the test is over")
    assert not server.payloads._uploads
    assert runs.rows() == [], "no run came into being"
    _still_serves(server, address)


def _still_serves(server: Server, address: str) -> None:
    """A real agent does a real group."""
    with (
        running_agents(address, ["honest"]),
        open_exchange(
            server.coordinator, planned_groups(1.0), run=run_spec("after"), inputs={"model": _model()}
        ) as opened,
    ):
        answer = next_answer(opened, 20.0)
        assert answer.result is not None and answer.result.reports[0].client == 0, answer
    server.coordinator.leave("honest", "", "done")


def _model() -> Record:
    return Record({"model": {"w": np.zeros(5, np.float32), "b": np.zeros((), np.float32)}})


class TestWhoCalls:
    @pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1]])
    @pytest.mark.parametrize(
        "path",
        [
            FLEET + "Register",
            FLEET + "UploadOffset",
            *(CONTROL + m for m in ("Submit", "ListRuns", "Stop", "ListNodes")),
        ],
    )
    def test_without_the_token_nothing_is_disclosed(self, stranger: Stranger, path: str, token: str) -> None:
        with refused("UNAUTHENTICATED", "give the agent this server's token"):
            stranger.unary(path, b"", token=token)

    @pytest.mark.parametrize("token", ["café".encode(), b"\xff\xfe"])
    def test_a_token_in_any_bytes_is_a_wrong_one(self, stranger: Stranger, token: bytes) -> None:
        headers = {b":path": f"{FLEET}UploadOffset".encode(), b"fedloom-token": token}
        assert b"give the agent this server's token" in by_hand(stranger.server.port, headers, b"")

    def test_nor_on_streams(self, stranger: Stranger) -> None:
        stranger.register()
        with refused("UNAUTHENTICATED"):
            stranger.work(token="wrong")
        with refused("UNAUTHENTICATED"):
            stranger.download(b"", token="wrong")
        with refused("UNAUTHENTICATED"):
            stranger.upload(head(b"x"), b"x", token="wrong")
        with refused("UNAUTHENTICATED"):
            list(
                stranger.channel.unary_stream(CONTROL + "Watch", None, None)(
                    b"", metadata=stranger.metadata(token="no"), timeout=10
                )
            )

    def test_our_own_clients_say_so_too(self, served: tuple[Server, RunQueue, str]) -> None:
        channel = GrpcChannel(served[2], "wrong")
        with pytest.raises(Unauthenticated):
            channel.open(Hello(node="n", session="s"))
        channel.close()
        with ControlClient(served[2], "wrong") as control:
            for call in (control.runs, control.nodes, lambda: control.stop("r"), lambda: list(control.watch("r"))):
                with pytest.raises(Unauthenticated):
                    call()

    @pytest.mark.parametrize("protocol", [0, 1, 4_000_000_000])
    def test_another_protocol_is_refused(self, stranger: Stranger, protocol: int) -> None:
        with refused("INVALID_ARGUMENT", "install the same fedloom version on both"):
            stranger.register(node="old", protocol=protocol)
        assert "old" not in stranger.server.coordinator.nodes()

    def test_calls_before_registering_are_refused(self, stranger: Stranger) -> None:
        with refused("NOT_FOUND", "register first"):
            stranger.work(node="unknown")
        with refused("NOT_FOUND", "register first"):
            stranger.download(b"", node="unknown")
        with refused("NOT_FOUND", "register first"):
            stranger.upload(head(b"x"), b"x", node="unknown")
        with refused("INVALID_ARGUMENT", "register first"):
            stranger.unary(FLEET + "UploadOffset", b"", node="", session="")

    def test_an_old_session_is_refused_when_a_new_one_is_there(self, stranger: Stranger) -> None:
        stranger.register(session="old")
        stranger.register(session="new")
        with refused("NOT_FOUND"):
            stranger.work(session="old")

    @pytest.mark.parametrize("method", ["Nothing", "register"])
    def test_unknown_methods(self, stranger: Stranger, method: str) -> None:
        with refused("UNIMPLEMENTED"):
            stranger.unary(FLEET + method, b"")


class TestBytes:
    GARBAGE = (b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", os.urandom(1000), b"\x00")

    @pytest.mark.parametrize("data", GARBAGE, ids=range(4))
    @pytest.mark.parametrize(
        "path",
        [
            FLEET + "Register",
            FLEET + "UploadOffset",
            *(CONTROL + m for m in ("Submit", "ListRuns", "Stop", "ListNodes")),
        ],
    )
    def test_garbage_in_unary_calls(self, stranger: Stranger, path: str, data: bytes) -> None:
        stranger.register()
        # Where gRPC itself cannot parse the request it answers INTERNAL; never is it a traceback of ours.
        with pytest.raises(grpc.RpcError) as caught:
            stranger.unary(path, data)
        assert caught.value.code().name in ("INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND")
        details = caught.value.details()
        assert details is not None
        assert "deserializ" in details or caught.value.code().name != "INTERNAL"

    @pytest.mark.parametrize("data", GARBAGE, ids=range(4))
    def test_garbage_in_streams(self, stranger: Stranger, data: bytes) -> None:
        stranger.register()
        with contextlib.suppress(grpc.RpcError):
            assert stranger.work(data) == []
        for call in (stranger.download, stranger.upload):
            with pytest.raises(grpc.RpcError) as caught:
                call(data)
            assert caught.value.code().name in ("INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND")

    def test_too_big_messages_are_refused_everywhere(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        big = bytes(MAX_MESSAGE_BYTES + 1)
        with refused("RESOURCE_EXHAUSTED"):
            stranger.unary(FLEET + "Register", big)
        with refused("RESOURCE_EXHAUSTED"):
            stranger.unary(CONTROL + "Submit", big)
        with refused("RESOURCE_EXHAUSTED"):
            stranger.work(big)
        with refused("RESOURCE_EXHAUSTED"):
            stranger.download(big)
        with pytest.raises(grpc.RpcError) as caught:
            stranger.upload(head(big), big)
        assert caught.value.code().name in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            (pb.FromAgent(), "is the agent newer than this server"),
            (pb.FromAgent(result=pb.GroupResult()), "run_id"),
            (pb.FromAgent(heartbeat=pb.Heartbeat(held=[pb.GroupKey(run_id="x" * 1000)])), "run_id"),
        ],
    )
    def test_a_malformed_message_ends_the_stream_with_the_reason(
        self, stranger: Stranger, message: pb.FromAgent, text: str
    ) -> None:
        stranger.register()
        with refused("INVALID_ARGUMENT", text):
            stranger.work(pb.FromAgentBatch(messages=[message]).SerializeToString())
        assert not stranger.server.coordinator.nodes()["n"].online

    def test_an_empty_batch_ends_the_stream_with_the_reason(self, stranger: Stranger) -> None:
        stranger.register()
        with refused("INVALID_ARGUMENT", "empty batch"):
            stranger.work(b"")

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=300))
    def test_any_bytes_on_the_work_stream(self, stranger: Stranger, data: bytes) -> None:
        stranger.register(node="fuzz")
        call = stranger.channel.stream_stream(FLEET + "Work", None, None)(
            iter([data]), metadata=stranger.metadata(node="fuzz"), timeout=5
        )
        try:
            list(call)
        except grpc.RpcError as exc:
            assert exc.code().name in ("INVALID_ARGUMENT", "INTERNAL", "UNKNOWN"), exc.details()


class TestResults:
    def send(self, stranger: Stranger, result: pb.GroupResult, node: str = "n") -> pb.Ack:
        def messages() -> Iterator[bytes]:
            yield pb.FromAgentBatch(messages=[pb.FromAgent(heartbeat=pb.Heartbeat())]).SerializeToString()
            with contextlib.suppress(AssertionError):  # nothing is left for it to do, where its answer has come
                wait_until(lambda: bool(stranger.server.coordinator.nodes()[node].assigned), 0.5)
            yield pb.FromAgentBatch(messages=[pb.FromAgent(result=result)]).SerializeToString()
            threading.Event().wait(10)

        call = stranger.channel.stream_stream(FLEET + "Work", None, None)(
            messages(),
            metadata=stranger.metadata(node=node),
            timeout=10,
        )
        for reply in call:
            for message in pb.ToAgentBatch.FromString(reply).messages:
                if message.WhichOneof("body") == "ack":
                    call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types
                    return message.ack
        raise AssertionError("no answer")

    def result(self, total: pb.Payload | None = None, client: int = 0, **key: Any) -> pb.GroupResult:
        message = pb.GroupResult(
            key=pb.GroupKey(**{"run_id": "run", "round": 1, **key}), reports=[pb.Report(client=client, num_examples=1)]
        )
        message.total.CopyFrom(total or inline(frames.encode(sum_of_one(0))))
        return message

    @pytest.mark.parametrize(
        ("total", "text"),
        [
            (pb.Payload(size=3, inline=b"abc"), "truncated"),
            (pb.Payload(size=9, shared="nonce"), "frame"),
            (pb.Payload(size=9, shared="../../../etc/passwd"), "does not exist"),
            (pb.Payload(size=9, shared=".owner"), "does not exist"),
            (pb.Payload(size=9, shared="a\0b"), "does not exist"),
            (pb.Payload(size=9, shared="x" * 5000), "does not exist"),
            (pb.Payload(size=9, shared="owner"), "does not exist"),
            (pb.Payload(size=9, sha256="0" * 64), "is not complete"),
            (pb.Payload(size=9, sha256="../etc"), "is not complete"),
            (pb.Payload(size=0), "is not complete"),
        ],
    )
    def test_sums_that_are_none_are_rejected(self, stranger: Stranger, total: pb.Payload, text: str) -> None:
        stranger.register()
        with open_exchange(stranger.server.coordinator, planned_groups(1.0)) as opened:
            ack = self.send(stranger, self.result(total))
            assert ack.status == "rejected" and text in ack.message
            assert opened.answers.empty() and not opened.done

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"info_json": "[1]"}, "report.info: expected a JSON object"),
            ({"info_json": "{"}, "report.info: not JSON"),
            ({"seconds": -1.0}, "report.seconds: expected a non-negative number"),
            ({"metrics": [pb.Metric(name="", sum=1.0, weight=1.0)]}, "metric: expected 1 to 256"),
        ],
    )
    def test_a_result_that_cannot_be_read_is_rejected_and_the_stream_continues(
        self, stranger: Stranger, change: dict[str, Any], text: str
    ) -> None:
        unreadable = self.result()
        unreadable.reports[0].MergeFrom(pb.Report(**change))
        stranger.register()
        messages = [pb.FromAgent(result=result) for result in (unreadable, self.result(round=99))]
        acks = {ack.key.round: ack for ack in self.acks(stranger, messages, 2)}
        assert acks[1].status == "rejected" and text in acks[1].message
        assert acks[99].status == "stale"

    def acks(self, stranger: Stranger, messages: list[pb.FromAgent], count: int) -> list[pb.Ack]:
        """The first answers to messages, each sent in a batch of its own."""
        batches = tuple(pb.FromAgentBatch(messages=[message]).SerializeToString() for message in messages)
        call = stranger.channel.stream_stream(FLEET + "Work", None, None)(
            _then_wait(batches), metadata=stranger.metadata(), timeout=10
        )
        found: list[pb.Ack] = []
        for reply in call:
            found += [m.ack for m in pb.ToAgentBatch.FromString(reply).messages if m.WhichOneof("body") == "ack"]
            if len(found) >= count:
                break
        call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types
        return found

    def test_a_sum_with_a_byte_more_is_rejected(self, stranger: Stranger) -> None:
        stranger.register()
        with open_exchange(stranger.server.coordinator, planned_groups(1.0)):
            ack = self.send(stranger, self.result(inline(bytes(frames.encode(sum_of_one(0))) + b"!")))
            assert ack.status == "rejected" and "trailing" in ack.message

    def test_results_for_a_foreign_run_are_stale_for_other_clients_rejected(self, stranger: Stranger) -> None:
        stranger.register()
        with open_exchange(stranger.server.coordinator, planned_groups(1.0)) as opened:
            assert self.send(stranger, self.result(run_id="foreign")).status == "stale"
            assert self.send(stranger, self.result(round=9)).status == "stale"
            assert self.send(stranger, self.result(index=77)).status == "rejected"
            assert self.send(stranger, self.result(client=5)).status == "rejected"
            assert opened.answers.empty() and not opened.done

    def test_a_foreign_nodes_upload_is_not_there(self, stranger: Stranger) -> None:
        data = bytes(frames.encode(sum_of_one(0)))
        stranger.register_with_work("owner")
        assert stranger.upload(head(data), data, node="owner") == len(data)
        stranger.register("thief")
        ref = pb.Payload(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        groups = [PlannedGroup(jobs=(Job(round=1, client=0),), work=1.0, only=name) for name in ("thief", "owner")]
        with open_exchange(stranger.server.coordinator, groups) as opened:
            ack = self.send(stranger, self.result(ref), node="thief")
            assert ack.status == "rejected" and "is not complete" in ack.message
            assert self.send(stranger, self.result(ref, index=1), node="owner").status == "accepted"
            assert next_answer(opened).node == "owner"
            assert self.send(stranger, self.result(ref, index=1), node="owner").status == "duplicate"

    def test_uploads_of_results_that_come_too_late_are_let_go(self, stranger: Stranger) -> None:
        data = bytes(frames.encode(sum_of_one(0)))
        stranger.register_with_work()
        stranger.upload(head(data), data)
        ref = pb.Payload(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        assert self.send(stranger, self.result(ref, round=99)).status == "stale"
        with pytest.raises(NotFound):
            stranger.server.payloads.take("n", PayloadRef(size=len(data), sha256=ref.sha256))


def inline(frame: bytes | bytearray) -> pb.Payload:
    return pb.Payload(size=len(frame), inline=bytes(frame))


class TestTransfers:
    DATA = os.urandom(3 * MIB + 17)

    def chunks(self, data: bytes = DATA, start: int = 0) -> Iterator[bytes]:
        for at in range(start, len(data), MIB):
            yield data[at : at + MIB]

    def offset(self, stranger: Stranger, data: bytes = DATA) -> int:
        return pb.UploadReply.FromString(stranger.unary(FLEET + "UploadOffset", head(data))).received

    def test_an_upload_continues_where_a_broken_stream_left_off(self, stranger: Stranger) -> None:
        stranger.register_with_work("up")
        first = next(self.chunks())
        broken: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for message in (head(self.DATA), first):
            broken.put(message)
        call = stranger.channel.stream_unary(FLEET + "Upload", None, None).future(
            iter(broken.get, None), metadata=stranger.metadata("up"), timeout=10
        )
        uploads, name = stranger.server.payloads._uploads, ("up", hashlib.sha256(self.DATA).hexdigest())
        wait_until(lambda: name in uploads and uploads[name].received == MIB)
        call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types
        broken.put(None)
        request = head(self.DATA)
        assert pb.UploadReply.FromString(stranger.unary(FLEET + "UploadOffset", request, node="up")).received == MIB
        done = stranger.upload(head(self.DATA, offset=MIB), *self.chunks(start=MIB), node="up")
        assert done == len(self.DATA)
        assert uploads[name].complete and bytes(uploads[name].data) == self.DATA

    def test_another_digest_than_announced_is_refused_and_forgotten(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        other = bytearray(self.DATA)
        other[-1] ^= 1
        with refused("INVALID_ARGUMENT", "do not have the digest announced"):
            stranger.upload(head(self.DATA), *self.chunks(bytes(other)))
        assert self.offset(stranger) == 0
        assert stranger.upload(head(self.DATA), *self.chunks()) == len(self.DATA)

    def test_more_bytes_than_announced_are_refused(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        with refused("RESOURCE_EXHAUSTED", "end with the frame"):
            stranger.upload(head(b"12345"), b"123456")

    def test_a_chunk_over_a_mebibyte_is_refused(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        with refused("RESOURCE_EXHAUSTED", f"at most {MIB} bytes"):
            stranger.upload(head(self.DATA), self.DATA[: MIB + 1])

    def test_an_empty_chunk_is_refused(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        with refused("INVALID_ARGUMENT", "got an empty one"):
            stranger.upload(head(b"abc"), b"")

    def test_fewer_bytes_than_announced_leave_the_upload_open(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        assert stranger.upload(head(b"abcdef"), b"abc") == 3
        with refused("INVALID_ARGUMENT", "continues at byte 0, the server has 3"):
            stranger.upload(head(b"abcdef"), b"abcdef")
        assert stranger.upload(head(b"abcdef", offset=3), b"def") == 6
        assert stranger.upload(head(b"abcdef", offset=6)) == 6, "sent again: it is there"

    def test_chunks_out_of_order_have_another_digest(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        one, two, *rest = self.chunks()
        with refused("INVALID_ARGUMENT", "digest"):
            stranger.upload(head(self.DATA), two, one, *rest)

    def test_chunks_before_the_head_are_refused(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        with refused("INVALID_ARGUMENT"):
            stranger.upload(b"\xff" * 40, head(b"abc"), b"abc")
        with refused("INVALID_ARGUMENT", "64 hexadecimal digits"):
            stranger.upload()

    def test_too_large_and_disagreeing_announcements(self, stranger: Stranger) -> None:
        stranger.register_with_work()
        with refused("RESOURCE_EXHAUSTED", "exceeds the limit"):
            stranger.upload(head(b"abc", size=1 << 60))
        stranger.upload(head(b"abc!"), b"a")
        with refused("INVALID_ARGUMENT", "announced with 4 bytes before, now with 5"):
            stranger.upload(head(b"abc!", size=5), b"a")

    @pytest.mark.parametrize("digest", ["", "abc", "Z" * 64, "../" * 21 + "x"])
    def test_digests_that_are_none(self, stranger: Stranger, digest: str) -> None:
        stranger.register_with_work()
        with refused("INVALID_ARGUMENT", "64 hexadecimal digits"):
            stranger.upload(head(b"abc", sha256=digest), b"abc")

    def test_one_node_holds_one_unfinished_upload(self, stranger: Stranger) -> None:
        stranger.register_with_work("greedy")
        for index in range(5):
            stranger.unary(FLEET + "UploadOffset", head(bytes([index]) * 10, size=MIB), node="greedy")
        held = [key for key in stranger.server.payloads._uploads if key[0] == "greedy"]
        assert len(held) == 1

    def test_downloads_of_nothing_and_from_behind_the_end(self, stranger: Stranger) -> None:
        record = records_of_every_dtype(3 * MIB)[0]
        opened = stranger.register_with_work("remote", record)
        stranger.register("idle")
        with refused("NOT_FOUND", "its round may have ended"):
            stranger.download(pb.DownloadRequest(sha256="0" * 64).SerializeToString(), node="remote")
        sha256, whole = opened.inputs["model"].sha256, bytes(frames.encode(record))
        for start in (0, 1, MIB, len(whole) - 1, len(whole)):
            request = pb.DownloadRequest(sha256=sha256, offset=start).SerializeToString()
            assert stranger.download(request, node="remote") == whole[start:]
            with refused("NOT_FOUND", "no group of node 'idle' reads"):
                stranger.download(request, node="idle")
        with refused("INVALID_ARGUMENT", "beyond the end"):
            request = pb.DownloadRequest(sha256=sha256, offset=len(whole) + 1).SerializeToString()
            stranger.download(request, node="remote")
        stranger.stack.close()
        with refused("NOT_FOUND"):  # the exchange is over
            stranger.download(pb.DownloadRequest(sha256=sha256).SerializeToString(), node="remote")


class TestControl:
    @pytest.mark.parametrize(
        ("text", "status", "words"),
        [
            ("", "INVALID_ARGUMENT", "not JSON"),
            ("{", "INVALID_ARGUMENT", "not JSON"),
            ("[" * 100_000, "INVALID_ARGUMENT", "not JSON"),
            ("[1]", "INVALID_ARGUMENT", "expected the experiment as a JSON object, got a list"),
            ("3", "INVALID_ARGUMENT", "got a int"),
            ("{}", "INVALID_ARGUMENT", "rounds: required"),
            ('{"rounds": 1, "strategy": "fedavgg", "workload": "flower"}', "NOT_FOUND", "did you mean 'fedavg'"),
            ('{"rounds": 0, "strategy": "fedavg", "workload": "image_classification"}', "INVALID_ARGUMENT", "rounds"),
            ('{"rounds": 1, "strategy": "fedavg", "workload": "x.py", "ruonds": 1}', "NOT_FOUND", "'x.py' not found"),
            (f'{{"rounds": 1, "strategy": "fedavg", "workload": "{LINEAR}", "x": 1}}', "INVALID_ARGUMENT", "x: unk"),
            (f'{{"rounds": {2**32}, "strategy": "fedavg", "workload": "{LINEAR}"}}', "INVALID_ARGUMENT", "rounds: "),
            (f'{{"rounds": {10**400}, "strategy": "fedavg", "workload": "{LINEAR}"}}', "INVALID_ARGUMENT", "rounds: "),
            ('{"rounds": 1, "name": "\\ud800", "strategy": "fedavg"}', "INVALID_ARGUMENT", "not JSON"),
            ('{"rounds": 1, "fleet": {"labels": {"\\udfff": "x"}}}', "INVALID_ARGUMENT", "not JSON"),
        ],
    )  # fmt: skip
    def test_experiments_that_are_none(self, stranger: Stranger, text: str, status: str, words: str) -> None:
        request = control_pb.SubmitRequest(experiment_json=text)
        with refused(status, words):
            stranger.unary(CONTROL + "Submit", request.SerializeToString())

    @pytest.mark.parametrize("text", ["x" * 20_000, "é" * 5_000, "😀" * 3_000, "\0" * 5_000])
    def test_what_was_asked_for_is_quoted_in_short(self, stranger: Stranger, text: str) -> None:
        """A status has room for 8 KiB; a longer one is lost on the way, and another told in its place."""
        stop, watch = control_pb.StopRequest(run_id=text), control_pb.WatchRequest(run_id=text)
        with refused("NOT_FOUND", "list runs with `fedloom runs`"):
            stranger.unary(CONTROL + "Stop", stop.SerializeToString())
        with refused("NOT_FOUND", "list runs with `fedloom runs`"):
            stranger.unary(CONTROL + "Watch", watch.SerializeToString())
        experiment = json.dumps({"rounds": 1, "strategy": text, "workload": str(LINEAR)})
        with refused("NOT_FOUND", "unknown name"):
            stranger.unary(CONTROL + "Submit", control_pb.SubmitRequest(experiment_json=experiment).SerializeToString())

    def test_runs_that_do_not_exist(self, stranger: Stranger, served: tuple[Server, RunQueue, str]) -> None:
        for run_id in ("", "../../etc", "nobody"):
            with refused("NOT_FOUND", "no run"):
                stranger.unary(CONTROL + "Stop", control_pb.StopRequest(run_id=run_id).SerializeToString())
        with ControlClient(served[2], TOKEN) as control, pytest.raises(NotFound, match="no run 'nobody'"):
            list(control.watch("nobody"))


def test_what_is_not_ours_is_reported_in_a_neutral_sentence(
    served: tuple[Server, RunQueue, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server, _, address = served

    def broken(*args: object) -> None:
        raise ZeroDivisionError("secret path /home/alice")

    monkeypatch.setattr(server.coordinator, "rows", broken)
    with ControlClient(address, TOKEN) as control, pytest.raises(FedloomError) as caught:
        control.nodes()
    assert "alice" not in str(caught.value) and str(FedloomError.public) in str(caught.value)
    assert "alice" in caplog.text, "the log has the details"


def test_a_port_in_use_is_a_usage_error(served: tuple[Server, RunQueue, str], tmp_path: Path) -> None:
    port = int(served[2].rpartition(":")[2])
    with Server() as server, pytest.raises(UsageError, match=f"127.0.0.1:{port}: the port is in use"):
        server.listen(port=port)


def test_an_equal_frame_announced_while_the_first_is_taken_stays_for_the_second(stranger: Stranger) -> None:
    """Two groups with equal sums: the second upload finds the first one's bytes, which its result then takes."""
    data = bytes(frames.encode(sum_of_one(0)))
    stranger.register_with_work()
    stranger.upload(head(data), data)
    reply = stranger.unary(FLEET + "UploadOffset", head(data))
    assert pb.UploadReply.FromString(reply).received == len(data)
    ref = PayloadRef(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    stranger.server.payloads.take("n", ref)
    assert stranger.upload(head(data, offset=len(data))) == len(data)
    stranger.server.payloads.take("n", ref)
    with pytest.raises(NotFound):
        stranger.server.payloads.take("n", ref)


def test_bytes_that_are_no_message_leave_nothing_behind(stranger: Stranger) -> None:
    """Neither a call's context, nor the work that waits for it."""

    def states() -> int:
        gc.collect()
        return sum(type(thing) in (CallContext, asyncio.Task) for thing in gc.get_objects())

    stranger.register()
    before = states()
    for _ in range(50):
        with refused("INVALID_ARGUMENT", "expected its request message, got"):
            stranger.unary(CONTROL + "ListRuns", b"\xff" * 9)
    wait_until(lambda: states() <= before + 5)
