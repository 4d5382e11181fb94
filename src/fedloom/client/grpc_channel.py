"""The channel of a real agent: one stream over gRPC; frames through the host's shared memory, else in chunks."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np

from fedloom.core import frames
from fedloom.core.depot import Depot
from fedloom.core.errors import (
    BadFrame,
    BadMessage,
    FedloomError,
    LimitExceeded,
    NotFound,
    ServerUnreachable,
    Unauthenticated,
)
from fedloom.core.messages import FromAgent, Hello, PayloadRef, ToAgent, Welcome
from fedloom.core.records import Array, Groups, Record
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetStub

MAX_MESSAGE_BYTES = 16 << 20
"""The largest control message either side takes."""
INLINE_BYTES = 128 << 10
"""Frames up to this size travel inside the result."""
HEADER_ROOM = 4096
"""Bytes kept free before leased arrays for a header that is not final yet."""
_MAX_BATCH = 64
"""Messages in one batch on the stream, at most."""
_ATTEMPTS = 5
"""How often a broken transfer is continued before the connection counts as lost."""

_ERRORS: Mapping[grpc.StatusCode, type[FedloomError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: BadMessage,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
}
"""Statuses that mean "do not try that again"; every other one means the server cannot be reached."""

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


def translate(exc: grpc.RpcError, address: str) -> FedloomError:
    """A gRPC failure as one of ours."""
    call: Any = exc  # what gRPC raises is an RpcError and a Call at once, which its types cannot say
    code = call.code() if hasattr(call, "code") else grpc.StatusCode.UNKNOWN
    detail = (call.details() if hasattr(call, "details") else "") or str(exc)
    kind = _ERRORS.get(code)
    if kind is not None:
        return kind(f"the server at {address} refused: {detail}")
    return ServerUnreachable(
        f"no answer from the server at {address} ({code.name}: {detail}). Is `fedloom serve` running there, and can "
        "this machine reach the address?"
    )


class GrpcChannel:
    """One agent's connection.

    Args:
        address: `host:port` of the server.
        token: the server's shared secret; empty where it has none.
        connect_s: seconds to wait for a connection before it counts as unreachable.
    """

    def __init__(self, address: str, token: str = "", *, connect_s: float = 10.0) -> None:
        self._address, self._connect_s = address, connect_s
        self._token = (("fedloom-token", token),) if token else ()
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._channel: grpc.Channel | None = None
        self._outbox: queue.SimpleQueue[FromAgent | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[ToAgent | FedloomError] = queue.SimpleQueue()
        self._welcome: Welcome | None = None
        self._depot: Depot | None = None
        self._leases: dict[int, tuple[Groups, str, frames.Layout, memoryview]] = {}
        """Leased arrays by their identity, and kept alive, so that no other record can be taken for them."""
        self._shared: list[str] = []

    def open(self, hello: Hello) -> Welcome:
        self._disconnect()
        self._channel = grpc.insecure_channel(self._address, options=OPTIONS)
        self._metadata = (*self._token, ("fedloom-node", hello.node), ("fedloom-session", hello.session))
        stub = FleetStub(self._channel)
        try:
            grpc.channel_ready_future(self._channel).result(timeout=self._connect_s)
            reply = stub.Register(codec.hello_message(hello), metadata=self._metadata, timeout=self._connect_s)
        except grpc.FutureTimeoutError as exc:
            raise ServerUnreachable(f"no server at {self._address} within {self._connect_s:g} s") from exc
        except grpc.RpcError as exc:
            raise translate(exc, self._address) from exc
        self._welcome = codec.read_welcome(reply)
        if self._depot is not None and str(self._depot.path) != self._welcome.depot_path:
            self._depot.close()  # the server was restarted and has another depot
            self._depot = None
        self._depot = self._depot or Depot.join(self._welcome.depot_path, self._welcome.depot_nonce)
        self._outbox, self._inbox = queue.SimpleQueue(), queue.SimpleQueue()
        where = (("fedloom-locality", f"host:{self._welcome.depot_nonce}"),) if self._depot is not None else ()
        replies = stub.Work(self._requests(self._outbox), metadata=(*self._metadata, *where))
        threading.Thread(target=self._listen, args=(replies, self._inbox), name="fedloom-listener", daemon=True).start()
        return self._welcome

    def send(self, message: FromAgent) -> None:
        self._outbox.put(message)

    def receive(self, timeout_s: float) -> ToAgent | None:
        try:
            message = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
        except queue.Empty:
            return None
        if isinstance(message, FedloomError):
            raise message
        return message

    def fetch(self, ref: PayloadRef) -> Record:
        if ref.inline:
            return frames.decode(ref.inline)
        if ref.shared:
            if self._depot is None:
                raise BadMessage(f"the server names shared memory {ref.shared!r}, which this agent cannot see")
            return frames.decode(self._depot.map(ref.shared, ref.size))
        assert self._welcome is not None
        if ref.size > self._welcome.max_payload_bytes:
            raise LimitExceeded(f"payload of {ref.size} bytes exceeds {self._welcome.max_payload_bytes}")
        return frames.decode(memoryview(self._download(ref)).toreadonly())

    def lease(self, record: Record) -> Mapping[str, Mapping[str, Any]]:
        layout = frames.Layout.of(record)
        if self._depot is None or layout.size <= INLINE_BYTES:
            return _empty(record)
        layout = frames.Layout.of(record, data_start=-(-(len(layout.header) + HEADER_ROOM) // 64) * 64)
        buffer = self._depot.lease(layout.size)
        views = layout.views(buffer.memory)
        ordered = {group: {name: views[group][name] for name in arrays} for group, arrays in record.groups.items()}
        self._leases[id(ordered)] = (ordered, buffer.name, layout, buffer.memory)
        return ordered

    def store(self, record: Record) -> PayloadRef:
        layout = frames.Layout.of(record)
        if layout.size <= INLINE_BYTES:
            return PayloadRef(size=layout.size, inline=bytes(frames.encode(record)))
        if self._depot is not None:
            return self._share(record, layout)
        return self._upload(record, layout.size)

    def recycle(self, run_id: str, round: int, exchange: int) -> None:
        if self._depot is not None:
            for name in (*self._shared, *(name for _, name, _, _ in self._leases.values())):
                self._depot.release(name)
        self._shared.clear()
        self._leases.clear()

    def close(self) -> None:
        self._outbox.put(None)
        self._disconnect()
        if self._depot is not None:
            self._depot.close()
            self._depot = None

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._outbox.put(None)
            self._channel.close()
            self._channel = None

    def _share(self, record: Record, layout: frames.Layout) -> PayloadRef:
        """Leave the frame in the host's memory; leased arrays are already there and only need their header."""
        assert self._depot is not None
        lease = self._leases.pop(id(record.groups), None)
        if lease is not None:
            _, name, planned, memory = lease
            final = frames.Layout.of(record, data_start=planned.slots[0].start if planned.slots else 0)
            if [slot.start for slot in final.slots] == [slot.start for slot in planned.slots]:
                memory[: len(final.header)] = final.header
                self._shared.append(name)
                return PayloadRef(size=final.size, shared=name)
        buffer = self._depot.lease(layout.size)
        frames.write_into(record, buffer.memory, layout)
        self._shared.append(buffer.name)
        if lease is not None:
            self._depot.release(lease[1])
        return PayloadRef(size=layout.size, shared=buffer.name)

    def _download(self, ref: PayloadRef) -> bytearray:
        """The frame named by digest, continued where a broken stream left off."""
        assert self._channel is not None
        call = self._channel.unary_stream(
            "/fedloom.proto.v1.Fleet/Download",
            request_serializer=pb.DownloadRequest.SerializeToString,
            response_deserializer=None,
        )
        frame, received, digest = bytearray(ref.size), 0, hashlib.sha256()
        for attempt in range(_ATTEMPTS):
            try:
                for chunk in call(pb.DownloadRequest(sha256=ref.sha256, offset=received), metadata=self._metadata):
                    if received + len(chunk) > ref.size:
                        raise BadFrame(f"the server sent more than the {ref.size} bytes announced")
                    frame[received : received + len(chunk)] = chunk
                    digest.update(chunk)
                    received += len(chunk)
                break
            except grpc.RpcError as exc:
                error = translate(exc, self._address)
                if attempt == _ATTEMPTS - 1 or not isinstance(error, ServerUnreachable):
                    raise error from exc
        if received != ref.size or digest.hexdigest() != ref.sha256:
            raise BadFrame(f"download: {received} of {ref.size} bytes, or other bytes than their digest says")
        return frame

    def _upload(self, record: Record, size: int) -> PayloadRef:
        """Send the frame by digest, continued where a broken stream left off."""
        assert self._channel is not None and self._welcome is not None
        sha256, chunk_bytes = frames.digest(record), self._welcome.chunk_bytes
        stub = FleetStub(self._channel)
        call = self._channel.stream_unary(
            "/fedloom.proto.v1.Fleet/Upload",
            request_serializer=None,
            response_deserializer=pb.UploadReply.FromString,
        )
        for attempt in range(_ATTEMPTS):
            try:
                asked = pb.UploadRequest(sha256=sha256, size=size)
                offset = stub.UploadOffset(asked, metadata=self._metadata, timeout=self._connect_s).received
                head = pb.UploadRequest(sha256=sha256, size=size, offset=offset).SerializeToString()
                chunks = frames.chunked(frames.pieces(record), chunk_bytes, offset)
                reply = call(_with_head(head, chunks), metadata=self._metadata)
                if reply.received == size:
                    return PayloadRef(size=size, sha256=sha256)
            except grpc.RpcError as exc:
                error = translate(exc, self._address)
                if attempt == _ATTEMPTS - 1 or not isinstance(error, ServerUnreachable):
                    raise error from exc
        raise ServerUnreachable(f"the server at {self._address} took only part of an upload, {_ATTEMPTS} times")

    def _requests(self, outbox: queue.SimpleQueue[FromAgent | None]) -> Iterator[pb.FromAgentBatch]:
        """What is in the outbox, all of it at once, until the end mark."""
        message = outbox.get()
        while message is not None:
            messages = [codec.from_agent_message(message)]
            while not outbox.empty() and len(messages) < _MAX_BATCH:
                message = outbox.get()
                if message is None:
                    break
                messages.append(codec.from_agent_message(message))
            yield pb.FromAgentBatch(messages=messages)
            if message is not None:
                message = outbox.get()

    def _listen(self, replies: Any, inbox: queue.SimpleQueue[ToAgent | FedloomError]) -> None:
        try:
            for batch in replies:
                for message in batch.messages:
                    inbox.put(codec.read_to_agent(message))
            inbox.put(ServerUnreachable(f"the server at {self._address} closed the connection"))
        except grpc.RpcError as exc:
            inbox.put(translate(exc, self._address))
        except FedloomError as exc:
            inbox.put(exc)
        finally:
            with contextlib.suppress(Exception):
                replies.cancel()


def _with_head(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks


def _empty(record: Record) -> dict[str, dict[str, Array]]:
    return {
        group: {name: np.empty(array.shape, array.dtype) for name, array in arrays.items()}
        for group, arrays in record.groups.items()
    }
