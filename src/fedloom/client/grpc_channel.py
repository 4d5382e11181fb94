"""The channel of a real agent: one stream over gRPC; frames through the host's shared memory, otherwise in chunks."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import grpc

from fedloom.client.host_memory import HostMemory
from fedloom.client.inbox import Inbox
from fedloom.client.link import MAX_MESSAGE_BYTES, connect, translate
from fedloom.client.proxy import NO_PROXY
from fedloom.client.shown_certificate import clock_trouble
from fedloom.client.transfers import Connection, Transfers
from fedloom.core import frames
from fedloom.core.errors import (
    BadMessage,
    FedloomError,
    LimitExceeded,
    ServerUnreachable,
    Unauthenticated,
)
from fedloom.core.identity import Identity
from fedloom.core.layout import Layout
from fedloom.core.messages import MAX_PAYLOAD_BYTES, FromAgent, Hello, PayloadRef, ToAgent, Welcome
from fedloom.core.records import Groups, Record
from fedloom.core.text import clean
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetStub

INLINE_BYTES = 128 << 10
"""Frames up to this size are sent inside the result."""
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
        self._memory = HostMemory()
        self._transfers = Transfers(self._error, count)
        self._shown = b""

    def open(self, hello: Hello) -> Welcome:
        self._disconnect()
        self._channel = connect(self._address, self._identify(), self._proxy)
        self._metadata = (*self._token, ("fedloom-node", hello.node), ("fedloom-session", hello.session))
        stub = FleetStub(self._channel)
        try:
            grpc.channel_ready_future(self._channel).result(timeout=self._connect_s)
            reply = stub.Register(codec.hello_message(hello), metadata=self._metadata, timeout=self._connect_s)
        except grpc.FutureTimeoutError as exc:
            hint = clock_trouble(self._identity()) or self._identity().ended() if self._identity is not None else ""
            raise ServerUnreachable(
                f"no server at {self._address} within {self._connect_s:g} s{f'; {hint}' if hint else ''}"
            ) from exc
        except grpc.RpcError as exc:
            raise self._error(exc) from exc
        self._welcome = clamped(codec.read_welcome(reply), is_member=self._identity is not None)
        self._memory.join(self._welcome.depot_path, self._welcome.depot_nonce)
        self._inbox.close()
        self._outbox, self._inbox = queue.SimpleQueue(), Inbox()
        where = (("fedloom-locality", f"host:{self._welcome.depot_nonce}"),) if self._memory.depot is not None else ()
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
            if self._memory.depot is None:
                raise BadMessage(f"the server refers to shared memory {ref.shared!r}, which this agent cannot access")
            return frames.decode(self._memory.depot.map(ref.shared, ref.size))
        assert self._welcome is not None
        if ref.size > self._welcome.max_payload_bytes:
            raise LimitExceeded(f"payload of {ref.size} bytes exceeds {self._welcome.max_payload_bytes}")
        return frames.decode(memoryview(self._transfers.download(ref, self._connection())).toreadonly())

    def lease(self, record: Record, run_id: str) -> Groups:
        return self._memory.lease(record, run_id, INLINE_BYTES)

    def recycle(self, run_id: str) -> None:
        self._memory.recycle(run_id)

    def store(self, record: Record, run_id: str) -> PayloadRef:
        layout = Layout.of(record)
        if layout.size <= INLINE_BYTES:
            return PayloadRef(size=layout.size, inline=bytes(frames.encode(record)))
        if self._memory.depot is not None:
            return self._memory.share(record, layout, run_id)
        assert self._welcome is not None
        return self._transfers.upload(record, layout.size, self._welcome.chunk_bytes, self._connection())

    def close(self) -> None:
        self._outbox.put(None)
        self._disconnect()
        self._memory.close()

    def _connection(self) -> Connection:
        assert self._channel is not None
        return Connection(self._address, self._channel, self._metadata, self._connect_s)

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
            inbox.put(ServerUnreachable(f"the server at {self._address} sent an unreadable message: {exc}"))
        finally:
            with contextlib.suppress(Exception):
                replies.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types


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
