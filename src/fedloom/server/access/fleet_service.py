"""Serves agents over gRPC: registration, the start of their streams (see `work_streams`), payloads.

Every method checks the caller, translates the message, and calls a plain function. Each `FedloomError` has
its status; any other exception becomes INTERNAL with a neutral message, and its traceback is logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, cast

import grpc
from google.protobuf.message import Message

from fedloom.core.errors import BadMessage, ServerUnreachable
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.server.access.audit import Audit
from fedloom.server.access.calls import CHUNK_S, Silence
from fedloom.server.access.gate import Caller, Gate, metadata, same_secret
from fedloom.server.access.status import answering
from fedloom.server.access.work_streams import Session
from fedloom.server.fleet.coordinator import Coordinator

M = TypeVar("M", bound=Message)


class FleetService:
    """Handles agents' calls."""

    def __init__(
        self, coordinator: Coordinator, gate: Gate, audit: Audit | None = None, silence: Silence | None = None
    ) -> None:
        self._coordinator, self._gate = coordinator, gate
        self._audit, self._silence = audit or Audit(None), silence or Silence()

    def register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        with answering(context):
            caller, hello = self._gate.admit(context, "Fleet/Register"), codec.read_hello(request)
            self._gate.own_name(caller, hello.node)
            welcome = self._coordinator.register(hello, "remote", caller.labels, context.peer(), member=caller.id)
            self._audit.notice("connected", hello.node, context.peer())
            return codec.welcome_message(welcome)

    def begin(self, context: grpc.ServicerContext) -> Session:
        """Start the stream of a registered session."""
        self._gate.enter(context, "Fleet/Work")
        caller, node, session = self._caller(context, "Fleet/Work")
        mailbox = self._coordinator.attach(node, session, self._locality(context))
        return Session(caller=caller, node=node, session=session, mailbox=mailbox)

    def upload_offset(self, request: pb.UploadRequest, context: grpc.ServicerContext) -> pb.UploadReply:
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

    def _caller(self, context: grpc.ServicerContext, call: str) -> tuple[Caller, str, str]:
        caller, sent = self._gate.admit(context, call), metadata(context)
        node, session = sent.get("fedloom-node", ""), sent.get("fedloom-session", "")
        if not node or not session:
            raise BadMessage("expected fedloom-node and fedloom-session in the call's metadata; register first")
        self._gate.own_name(caller, node)
        self._coordinator.check_session(node, session)
        return caller, node, session

    def _locality(self, context: grpc.ServicerContext) -> str:
        depot = self._coordinator.payloads.depot
        proof = metadata(context).get("fedloom-locality", "")
        same_host = depot is not None and same_secret(proof, f"host:{depot.nonce}")
        return "host" if same_host else "remote"


def methods(fleet: FleetService) -> dict[str, grpc.RpcMethodHandler[object, object]]:
    """Return the handlers of all methods but the stream; chunks of Download and Upload are raw bytes."""
    handlers = {
        "Register": grpc.unary_unary_rpc_method_handler(
            fleet.register, pb.RegisterRequest.FromString, pb.RegisterReply.SerializeToString
        ),
        "UploadOffset": grpc.unary_unary_rpc_method_handler(
            fleet.upload_offset, pb.UploadRequest.FromString, pb.UploadReply.SerializeToString
        ),
        "Download": grpc.unary_stream_rpc_method_handler(
            fleet.download, request_deserializer=pb.DownloadRequest.FromString
        ),
        "Upload": grpc.stream_unary_rpc_method_handler(
            fleet.upload, response_serializer=pb.UploadReply.SerializeToString
        ),
    }
    return cast("dict[str, grpc.RpcMethodHandler[object, object]]", handlers)


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
            raise BadMessage(
                "upload: expected a chunk of at least one byte, got an empty one; end the stream after the last chunk"
            )
        yield chunk


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except Exception as exc:
        raise BadMessage(
            f"expected a {kind.DESCRIPTOR.name} as the first message, got {len(data)} bytes that are none"
        ) from exc
