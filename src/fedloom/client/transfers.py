"""Payloads by digest over gRPC, in chunks: continued where a broken stream ended."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc

from fedloom.core import frames
from fedloom.core.errors import BadFrame, FedloomError, NotFound, ServerUnreachable
from fedloom.core.messages import PayloadRef
from fedloom.core.records import Record
from fedloom.core.reserved import reserve
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetStub

_ATTEMPTS = 5
"""How often a broken transfer is continued before the connection counts as lost."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection of an agent."""

    address: str
    channel: grpc.Channel
    metadata: tuple[tuple[str, str], ...]
    timeout_s: float
    """Seconds that a short call may take."""


class Transfers:
    """Downloads and uploads of one agent, over one connection after another.

    Args:
        error: translates a call's failure.
        count: called with the size of every chunk, both ways.
    """

    def __init__(self, error: Callable[[grpc.RpcError], FedloomError], count: Callable[[int], None]) -> None:
        self._error, self._count = error, count
        self._partial: _Partial | None = None
        """An interrupted download, continued when the same payload is requested again."""

    def download(self, ref: PayloadRef, over: Connection) -> bytearray | mmap.mmap:
        """Download a frame by its digest.

        Raises:
            BadFrame: the bytes are not those of the digest, or are too many.
            ServerUnreachable: the connection broke again and again.
        """
        call = over.channel.unary_stream(
            "/fedloom.proto.v1.Fleet/Download",
            request_serializer=pb.DownloadRequest.SerializeToString,
            response_deserializer=None,
        )
        part = self._partial
        if part is None or (part.sha256, len(part.frame)) != (ref.sha256, ref.size):
            part = self._partial = _Partial(ref.sha256, reserve(ref.size))
        for attempt in range(_ATTEMPTS):
            try:
                for chunk in call(pb.DownloadRequest(sha256=ref.sha256, offset=part.received), metadata=over.metadata):
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

    def upload(self, record: Record, size: int, chunk_bytes: int, over: Connection) -> PayloadRef:
        """Upload a record's frame by its digest.

        Args:
            record: to upload.
            size: bytes of its frame.
            chunk_bytes: size of a chunk.
            over: the connection.

        Raises:
            ServerUnreachable: the connection broke again and again, or the server does not know the session.
        """
        sha256 = frames.digest(record)
        stub = FleetStub(over.channel)
        call = over.channel.stream_unary(
            "/fedloom.proto.v1.Fleet/Upload",
            request_serializer=None,
            response_deserializer=pb.UploadReply.FromString,
        )
        for attempt in range(_ATTEMPTS):
            try:
                request = pb.UploadRequest(sha256=sha256, size=size)
                offset = stub.UploadOffset(request, metadata=over.metadata, timeout=over.timeout_s).received
                head = pb.UploadRequest(sha256=sha256, size=size, offset=offset).SerializeToString()
                chunks = frames.chunked(frames.pieces(record), chunk_bytes, offset)
                reply = call(_with_head(head, self._counted(chunks)), metadata=over.metadata)
                if reply.received == size:
                    return PayloadRef(size=size, sha256=sha256)
            except grpc.RpcError as exc:
                error = self._error(exc)
                if isinstance(error, NotFound):  # sent again once there is a session, the work is not done again
                    raise ServerUnreachable(
                        f"the server at {over.address} was restarted and does not know this session"
                    ) from exc
                if attempt == _ATTEMPTS - 1 or not isinstance(error, ServerUnreachable):
                    raise error from exc
        raise ServerUnreachable(f"the server at {over.address} received only part of an upload, {_ATTEMPTS} times")

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._count(len(chunk))
            yield chunk


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


def _with_head(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks
