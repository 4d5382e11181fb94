"""The gRPC service of agents: registration, the stream of messages, payloads.

Every method checks the caller, translates the message, and calls a plain function. Errors of the catalogue become their
status; anything else becomes INTERNAL with a neutral sentence, and its traceback is logged.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from fedloom.core.errors import (
    BadMessage,
    FedloomError,
    NotFound,
    ServerUnreachable,
)
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.fleet_pb2_grpc import FleetServicer
from fedloom.server.access.audit import Audit
from fedloom.server.access.calls import CHUNK_S, Silence
from fedloom.server.access.gate import Caller, Gate, metadata, same_secret
from fedloom.server.access.status import answering
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.nodes import Mailbox

M = TypeVar("M", bound=Message)
_log = logging.getLogger(__name__)

MAX_BATCH = 16
"""Messages sent to an agent together; their inlined payloads stay well under MAX_MESSAGE_BYTES."""
WARN_S = 60.0
"""Minimum number of seconds between two log lines about a node's messages."""
MAX_WARNED = 256
"""Limit of nodes whose last warning is remembered."""


class FleetService(FleetServicer):
    """Calls of agents."""

    def __init__(
        self, coordinator: Coordinator, gate: Gate, audit: Audit | None = None, silence: Silence | None = None
    ) -> None:
        self._coordinator, self._gate = coordinator, gate
        self._audit, self._silence = audit or Audit(None), silence or Silence()
        self._warned: dict[str, float] = {}
        """Time of each node's last rejected stream (monotonic seconds)."""

    def Register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        with answering(context):
            caller, hello = self._gate.admit(context, "Fleet/Register"), codec.read_hello(request)
            self._gate.own_name(caller, hello.node)
            welcome = self._coordinator.register(hello, "remote", caller.labels, context.peer(), member=caller.id)
            self._audit.notice("connected", hello.node, context.peer())
            return codec.welcome_message(welcome)

    def Work(
        self, request_iterator: Iterator[pb.FromAgentBatch], context: grpc.ServicerContext
    ) -> Iterator[pb.ToAgentBatch]:
        with answering(context):
            caller, node, session = self._caller(context, "Fleet/Work")
            mailbox = self._coordinator.attach(node, session, self._locality(context))
            refused: list[FedloomError] = []
            reader = threading.Thread(
                target=self._read,
                args=(request_iterator, context, caller, node, session, mailbox, refused),
                name=f"read-{node}",
                daemon=True,
            )
            if not context.add_callback(mailbox.close):  # the caller has disconnected
                mailbox.close()
            reader.start()
            while messages := mailbox.get_all(MAX_BATCH):
                wire = pb.ToAgentBatch(messages=[codec.to_agent_message(message) for message in messages])
                self._coordinator.count_bytes(node, down=wire.ByteSize())
                yield wire
            self._coordinator.detach(node, session, "its connection ended", mailbox)
            if refused:
                raise refused[0]

    def UploadOffset(self, request: pb.UploadRequest, context: grpc.ServicerContext) -> pb.UploadReply:
        with answering(context):
            _, node, _ = self._caller(context, "Fleet/UploadOffset")
            limit = self._coordinator.upload_limit(node)
            received = self._coordinator.payloads.upload_offset(node, request.sha256, request.size, limit)
            return pb.UploadReply(received=received)

    def download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Stream a payload as raw chunks."""
        with answering(context):
            _, node, _ = self._caller(context, "Fleet/Download")
            chunks = self._coordinator.download(node, request.sha256, request.offset)
            self._audit.notice("fetched", node, context.peer(), sha256=request.sha256[:64])
            for chunk in self._silence.taken(chunks, CHUNK_S, context):
                self._coordinator.count_bytes(node, down=len(chunk))
                yield chunk

    def upload(self, request_iterator: Iterator[bytes], context: grpc.ServicerContext) -> pb.UploadReply:
        """Receive a payload as raw chunks."""
        with answering(context):
            _, node, _ = self._caller(context, "Fleet/Upload")
            limit = self._coordinator.upload_limit(node)
            requests = self._silence.paced(request_iterator, CHUNK_S, context)
            head = _parse(pb.UploadRequest, next(requests, b""))
            chunks = self._counted(node, _until_broken(requests))
            received = self._coordinator.payloads.upload(node, head.sha256, head.size, head.offset, chunks, limit=limit)
            return pb.UploadReply(received=received)

    def _counted(self, node: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._coordinator.count_bytes(node, up=len(chunk))
            yield chunk

    def _read(
        self,
        requests: Iterator[pb.FromAgentBatch],
        context: grpc.ServicerContext,
        caller: Caller,
        node: str,
        session: str,
        mailbox: Mailbox,
        refused: list[FedloomError],
    ) -> None:
        try:
            for wire in requests:
                self._gate.check(caller)
                self._coordinator.count_bytes(node, up=wire.ByteSize())
                if not wire.messages:
                    raise BadMessage(f"node {node!r} sent an empty batch; is the agent newer than this server?")
                for message in wire.messages:
                    self._take(node, session, message)
        except NotFound as exc:  # another session has taken this one's place
            self._coordinator.detach(node, session, str(exc), mailbox)
        except FedloomError as exc:
            self._warn(node, exc)
            refused.append(exc)
            self._coordinator.detach(node, session, str(exc), mailbox)
        except grpc.RpcError:
            self._coordinator.detach(node, session, "its connection broke", mailbox)
        except Exception:
            # gRPC ends the request iterator with a bare Exception when the stream is torn down.
            if context.is_active():
                _log.exception("node %s: its stream failed", node, extra={"node": node})
            self._coordinator.detach(node, session, "its connection broke", mailbox)

    def _take(self, node: str, session: str, message: pb.FromAgent) -> None:
        """Process a message; a result that cannot be read is rejected by its key, and the stream continues."""
        try:
            read = codec.read_from_agent(message, node)
        except BadMessage as exc:
            if message.WhichOneof("body") != "result":
                raise
            self._coordinator.reject(node, session, codec.read_result_key(message.result), exc)
            return
        self._coordinator.receive(node, session, read)

    def _caller(self, context: grpc.ServicerContext, call: str) -> tuple[Caller, str, str]:
        caller, reported = self._gate.admit(context, call), metadata(context)
        node, session = reported.get("fedloom-node", ""), reported.get("fedloom-session", "")
        if not node or not session:
            raise BadMessage("call without fedloom-node and fedloom-session in its metadata; register first")
        self._gate.own_name(caller, node)
        self._coordinator.check_session(node, session)
        return caller, node, session

    def _warn(self, node: str, exc: FedloomError) -> None:
        """Log why a node's stream is refused, once a minute at most for each."""
        now = time.monotonic()
        if now - self._warned.get(node, -math.inf) >= WARN_S:
            if len(self._warned) >= MAX_WARNED:
                self._warned.clear()
            self._warned[node] = now
            _log.warning("node %s: %s", node, exc, extra={"node": node})

    def _locality(self, context: grpc.ServicerContext) -> str:
        depot = self._coordinator.payloads.depot
        proof = metadata(context).get("fedloom-locality", "")
        same_host = depot is not None and same_secret(proof, f"host:{depot.nonce}")
        return "host" if same_host else "remote"


def raw_methods(fleet: FleetService) -> dict[str, grpc.RpcMethodHandler[object, object]]:
    """Return the handlers of Download and Upload, whose chunks are raw bytes."""
    return {
        "Download": grpc.unary_stream_rpc_method_handler(
            fleet.download, request_deserializer=pb.DownloadRequest.FromString
        ),
        "Upload": grpc.stream_unary_rpc_method_handler(
            fleet.upload, response_serializer=pb.UploadReply.SerializeToString
        ),
    }


def _until_broken(requests: Iterator[bytes]) -> Iterator[bytes]:
    """Yield chunks until the stream ends; after a broken stream the upload can be continued."""
    while True:
        try:
            chunk = next(requests)
        except StopIteration:
            return
        except Exception as exc:
            raise ServerUnreachable("upload: the stream broke; query the offset and continue") from exc
        if not chunk:
            raise BadMessage("upload: an empty chunk; chunks must not be empty, and the stream ends after the last")
        yield chunk


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except Exception as exc:
        raise BadMessage(f"expected a {kind.DESCRIPTOR.name} first, got {len(data)} other bytes") from exc
