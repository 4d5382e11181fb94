"""The channel of a real agent: one stream over gRPC; frames through the host's shared memory, otherwise in chunks."""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import grpc
import numpy as np

from fedloom.client.inbox import Inbox
from fedloom.client.link import MAX_MESSAGE_BYTES, connect, translate
from fedloom.client.proxy import NO_PROXY
from fedloom.core import frames
from fedloom.core.depot import Buffer, Depot
from fedloom.core.errors import (
    BadFrame,
    BadMessage,
    FedloomError,
    LimitExceeded,
    NotFound,
    ServerUnreachable,
    Unauthenticated,
)
from fedloom.core.identity import Identity
from fedloom.core.layout import Layout
from fedloom.core.messages import MAX_PAYLOAD_BYTES, FromAgent, Hello, PayloadRef, ToAgent, Welcome
from fedloom.core.records import Array, Groups, Record
from fedloom.core.reserved import reserve
from fedloom.core.text import clean
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetStub

INLINE_BYTES = 128 << 10
"""Frames up to this size are sent inside the result."""
HEADER_ROOM = 4096
"""Bytes reserved before leased arrays for a header that is not final yet."""
LARGEST_MESSAGE = MAX_MESSAGE_BYTES - (64 << 10)
"""Size limit of a message to the server; a batch adds a few bytes per message."""
_MAX_BATCH = 64
"""Limit of messages in one batch on the stream."""
_Outbox: TypeAlias = "queue.SimpleQueue[tuple[pb.FromAgent, int] | None]"
"""Encoded messages with their sizes in bytes; None ends the stream."""
_HEARTBEAT_S = (0.05, 60.0)
"""Seconds between heartbeats, at least and at most, whatever the server says."""
_CHUNK_BYTES = (4 << 10, 1 << 20)
"""Bytes of a chunk of an upload, likewise."""
_ATTEMPTS = 5
"""How often a broken transfer is continued before the connection counts as lost."""


class GrpcChannel:
    """One agent's connection.

    Args:
        address: `host:port` of the server.
        token: the server's shared secret; empty if it has none.
        connect_s: seconds to wait for a connection before it counts as unreachable.
        identity: the agent's identity, queried for every connection; None on a server without members.
        count: called with the size of every message and chunk, both ways.
        proxy: URL of the HTTP proxy to a server without members; empty takes the environment's. An identity has its
            own.
    """

    def __init__(
        self,
        address: str,
        token: str = "",
        *,
        connect_s: float = 10.0,
        identity: Callable[[], Identity] | None = None,
        count: Callable[[int], None] = lambda count: None,
        proxy: str = NO_PROXY,
    ) -> None:
        self._address, self._connect_s, self._identity, self._count = address, connect_s, identity, count
        self._proxy = proxy
        self._token = (("fedloom-token", token),) if token else ()
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._channel: grpc.Channel | None = None
        self._outbox: _Outbox = queue.SimpleQueue()
        self._inbox = Inbox()
        self._welcome: Welcome | None = None
        self._depot: Depot | None = None
        self._leases: dict[int, _Lease] = {}
        """Leased arrays by their `id`, referenced so that no other record can get the same one."""
        self._shared: dict[str, list[str]] = {}
        """Names of the buffers that each run's records were stored in."""
        self._shown = b""
        self._partial: _Partial | None = None
        """An interrupted download, continued when the same payload is requested again."""

    def open(self, hello: Hello) -> Welcome:
        self._disconnect()
        self._channel = connect(self._address, self._identify(), self._proxy)
        self._metadata = (*self._token, ("fedloom-node", hello.node), ("fedloom-session", hello.session))
        stub = FleetStub(self._channel)
        try:
            grpc.channel_ready_future(self._channel).result(timeout=self._connect_s)
            reply = stub.Register(codec.hello_message(hello), metadata=self._metadata, timeout=self._connect_s)
        except grpc.FutureTimeoutError as exc:
            ended = self._identity().ended() if self._identity is not None else ""
            raise ServerUnreachable(
                f"no server at {self._address} within {self._connect_s:g} s{f'; {ended}' if ended else ''}"
            ) from exc
        except grpc.RpcError as exc:
            raise self._error(exc) from exc
        self._welcome = clamped(codec.read_welcome(reply), is_member=self._identity is not None)
        if self._depot is not None and str(self._depot.path) != self._welcome.depot_path:
            self._depot.close()  # the server was restarted and has another depot
            self._depot = None
            self._shared.clear()
            self._leases.clear()
        self._depot = self._depot or Depot.join(self._welcome.depot_path, self._welcome.depot_nonce)
        self._inbox.close()
        self._outbox, self._inbox = queue.SimpleQueue(), Inbox()
        where = (("fedloom-locality", f"host:{self._welcome.depot_nonce}"),) if self._depot is not None else ()
        replies = stub.Work(self._requests(self._outbox), metadata=(*self._metadata, *where))
        threading.Thread(target=self._listen, args=(replies, self._inbox), name="fedloom-listener", daemon=True).start()
        return self._welcome

    def send(self, message: FromAgent) -> None:
        """Queue a message for the server; it is encoded first, so that one that cannot be never reaches the stream.

        Raises:
            BadMessage: it cannot be encoded.
            LimitExceeded: it is larger than the server takes.
        """
        try:
            wire = codec.from_agent_message(message)
        except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as exc:
            raise BadMessage(f"a message cannot be encoded: {type(exc).__name__}: {clean(str(exc))}") from exc
        if (size := wire.ByteSize()) > LARGEST_MESSAGE:
            raise LimitExceeded(
                f"a message has {size} bytes, expected at most {LARGEST_MESSAGE}. Move a large `info` of an "
                "update, or a metric per example, to arrays"
            )
        self._outbox.put((wire, size))

    def receive(self, timeout_s: float) -> ToAgent | None:
        message = self._inbox.get(timeout_s)
        if isinstance(message, FedloomError):
            raise message
        return message

    def fetch(self, ref: PayloadRef) -> Record:
        if ref.inline:
            return frames.decode(ref.inline)
        if ref.shared:
            if self._depot is None:
                raise BadMessage(f"the server refers to shared memory {ref.shared!r}, which this agent cannot access")
            return frames.decode(self._depot.map(ref.shared, ref.size))
        assert self._welcome is not None
        if ref.size > self._welcome.max_payload_bytes:
            raise LimitExceeded(f"payload of {ref.size} bytes exceeds {self._welcome.max_payload_bytes}")
        return frames.decode(memoryview(self._download(ref)).toreadonly())

    def lease(self, record: Record, run_id: str) -> Groups:
        layout = Layout.of(record)
        if self._depot is None or layout.size <= INLINE_BYTES:
            return _empty(record)
        layout = Layout.of(record, data_start=-(-(len(layout.header) + HEADER_ROOM) // 64) * 64)
        buffer = self._depot.lease(layout.size)
        views = layout.views(buffer.memory)
        ordered = {group: {name: views[group][name] for name in arrays} for group, arrays in record.groups.items()}
        self._leases[id(ordered)] = _Lease(run_id, ordered, buffer, layout)
        return ordered

    def store(self, record: Record, run_id: str) -> PayloadRef:
        layout = Layout.of(record)
        if layout.size <= INLINE_BYTES:
            return PayloadRef(size=layout.size, inline=bytes(frames.encode(record)))
        if self._depot is not None:
            return self._share(record, layout, run_id)
        return self._upload(record, layout.size)

    def recycle(self, run_id: str) -> None:
        abandoned = {key: lease for key, lease in self._leases.items() if lease.run_id == run_id}
        names = [*self._shared.pop(run_id, ()), *(lease.buffer.name for lease in abandoned.values())]
        for key in abandoned:
            del self._leases[key]
        if self._depot is not None:
            for name in names:
                self._depot.release(name)

    def close(self) -> None:
        self._outbox.put(None)
        self._disconnect()
        if self._depot is not None:
            self._depot.close()
            self._depot = None

    def _identify(self) -> Identity | None:
        """Return the agent's identity for the next connection."""
        if self._identity is None:
            return None
        identity = self._identity()
        self._shown = identity.certificate
        return identity

    def _error(self, exc: grpc.RpcError) -> FedloomError:
        """Translate a failure; a rejected certificate that has been renewed since requires a new connection."""
        error = translate(exc, self._address)
        renewed = self._identity is not None and self._identity().certificate != self._shown
        if isinstance(error, Unauthenticated) and renewed:
            return ServerUnreachable(
                f"the certificate this connection to {self._address} was made with has expired; it has been renewed"
            )
        return error

    def _disconnect(self) -> None:
        self._inbox.close()
        if self._channel is not None:
            self._outbox.put(None)
            self._channel.close()
            self._channel = None

    def _share(self, record: Record, layout: Layout, run_id: str) -> PayloadRef:
        """Leave the frame in the host's memory; leased arrays are already there and only need their header."""
        assert self._depot is not None
        lease = self._leases.pop(id(record.groups), None)
        stored = self._shared.setdefault(run_id, [])
        if lease is not None:
            planned = lease.layout
            final = Layout.of(record, data_start=planned.slots[0].start if planned.slots else 0)
            if [slot.start for slot in final.slots] == [slot.start for slot in planned.slots]:
                lease.buffer.memory[: len(final.header)] = final.header
                stored.append(lease.buffer.name)
                return PayloadRef(size=final.size, shared=lease.buffer.name)
        buffer = self._depot.lease(layout.size)
        frames.write_into(record, buffer.memory, layout)
        stored.append(buffer.name)
        if lease is not None:
            self._depot.release(lease.buffer.name)
        return PayloadRef(size=layout.size, shared=buffer.name)

    def _download(self, ref: PayloadRef) -> bytearray | mmap.mmap:
        """Download the frame by digest, continued where a broken stream ended."""
        assert self._channel is not None
        call = self._channel.unary_stream(
            "/fedloom.proto.v1.Fleet/Download",
            request_serializer=pb.DownloadRequest.SerializeToString,
            response_deserializer=None,
        )
        part = self._partial
        if part is None or (part.sha256, len(part.frame)) != (ref.sha256, ref.size):
            part = self._partial = _Partial(ref.sha256, reserve(ref.size))
        for attempt in range(_ATTEMPTS):
            try:
                for chunk in call(pb.DownloadRequest(sha256=ref.sha256, offset=part.received), metadata=self._metadata):
                    self._count(len(chunk))
                    part.take(chunk)
                break
            except grpc.RpcError as exc:
                error = self._error(exc)
                if attempt == _ATTEMPTS - 1 or not isinstance(error, ServerUnreachable):
                    raise error from exc
            except BadFrame:
                self._partial = None
                raise
        self._partial = None
        if part.received != ref.size or part.digest.hexdigest() != ref.sha256:
            raise BadFrame(f"download: {part.received} of {ref.size} bytes, or the bytes do not match the digest")
        return part.frame

    def _upload(self, record: Record, size: int) -> PayloadRef:
        """Upload the frame by digest, continued where a broken stream ended."""
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
                reply = call(_with_head(head, self._counted(chunks)), metadata=self._metadata)
                if reply.received == size:
                    return PayloadRef(size=size, sha256=sha256)
            except grpc.RpcError as exc:
                error = self._error(exc)
                if isinstance(error, NotFound):  # sent again once there is a session, the work is not done again
                    raise ServerUnreachable(
                        f"the server at {self._address} was restarted and does not know this session"
                    ) from exc
                if attempt == _ATTEMPTS - 1 or not isinstance(error, ServerUnreachable):
                    raise error from exc
        raise ServerUnreachable(f"the server at {self._address} received only part of an upload, {_ATTEMPTS} times")

    def _requests(self, outbox: _Outbox) -> Iterator[pb.FromAgentBatch]:
        """Yield the messages of the outbox, as many per batch as it may contain, until the end mark."""
        waiting: deque[tuple[pb.FromAgent, int] | None] = deque()
        while True:
            if not waiting:
                waiting.append(outbox.get())
            while len(waiting) < _MAX_BATCH and not outbox.empty():
                waiting.append(outbox.get())
            messages, room = [], LARGEST_MESSAGE
            while waiting and (first := waiting[0]) is not None and first[1] <= room:
                messages.append(first[0])
                room -= first[1]
                waiting.popleft()
            if not messages:
                return
            batch = pb.FromAgentBatch(messages=messages)
            self._count(batch.ByteSize())
            yield batch

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._count(len(chunk))
            yield chunk

    def _listen(self, replies: grpc.CallIterator[pb.ToAgentBatch], inbox: Inbox) -> None:
        try:
            for batch in replies:
                self._count(batch.ByteSize())
                for message in batch.messages:
                    inbox.put(codec.read_to_agent(message), message.ByteSize())
            inbox.put(ServerUnreachable(f"the server at {self._address} closed the connection"))
        except grpc.RpcError as exc:
            inbox.put(self._error(exc))
        except FedloomError as exc:  # what cannot be read; the next connection may be to a server that can be
            inbox.put(ServerUnreachable(f"the server at {self._address} sent what cannot be read: {exc}"))
        finally:
            with contextlib.suppress(Exception):
                replies.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types


@dataclass(frozen=True, slots=True)
class _Lease:
    """Leased arrays in a buffer that `store` publishes without copying."""

    run_id: str
    arrays: Groups
    buffer: Buffer
    layout: Layout


@dataclass
class _Partial:
    """A partly received payload."""

    sha256: str
    frame: bytearray | mmap.mmap
    received: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def take(self, chunk: bytes) -> None:
        """Add the next bytes."""
        if self.received + len(chunk) > len(self.frame):
            raise BadFrame(f"the server sent more than the {len(self.frame)} bytes announced")
        self.frame[self.received : self.received + len(chunk)] = chunk
        self.digest.update(chunk)
        self.received += len(chunk)


def clamped(welcome: Welcome, *, is_member: bool) -> Welcome:
    """Return a server's welcome, limited to the agent's own bounds.

    Args:
        welcome: as it came.
        is_member: whether the server is known by its certificate only: a member shares no memory with it, and looks
            at no path that it names.
    """
    low, high = _HEARTBEAT_S
    heartbeat_s = min(max(welcome.heartbeat_s, low), high) if math.isfinite(welcome.heartbeat_s) else high
    least, most = _CHUNK_BYTES
    return replace(
        welcome,
        heartbeat_s=heartbeat_s,
        max_payload_bytes=min(welcome.max_payload_bytes, MAX_PAYLOAD_BYTES),
        chunk_bytes=min(max(welcome.chunk_bytes, least), most),
        depot_path="" if is_member else welcome.depot_path,
    )


def _with_head(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks


def _empty(record: Record) -> dict[str, dict[str, Array]]:
    return {
        group: {name: np.empty(array.shape, array.dtype) for name, array in arrays.items()}
        for group, arrays in record.groups.items()
    }
