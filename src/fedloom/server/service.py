"""The gRPC face of the server: thin servicers over the coordinator, the payload store and the run queue.

Every method does three things: check the caller, translate the message, call a plain function. Errors of the catalogue
become their status; anything else becomes INTERNAL with a neutral sentence, and its traceback goes to the log.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from fedloom.core.errors import (
    BadMessage,
    FedloomError,
    NotFound,
    ServerUnreachable,
    Unauthenticated,
    UsageError,
)
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import control_pb2 as control_pb
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from fedloom.proto.v1.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from fedloom.server.coordinator import Coordinator
from fedloom.server.nodes import Mailbox
from fedloom.server.run_queue import RunQueue

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 << 20
"""The largest control message taken or sent."""
MAX_BATCH = 16
"""Messages to an agent that may travel together; their inlined payloads stay well under MAX_MESSAGE_BYTES."""
MAX_STREAMS = 4096
"""Threads at most: each connected agent takes two while it is connected."""


class FleetService(FleetServicer):
    """What agents call."""

    def __init__(self, coordinator: Coordinator, token: str) -> None:
        self._coordinator, self._token = coordinator, token

    def Register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        with _answering(context):
            _authenticate(context, self._token)
            welcome = self._coordinator.register(codec.read_hello(request), "remote")
            return codec.welcome_message(welcome)

    def Work(
        self, request_iterator: Iterator[pb.FromAgentBatch], context: grpc.ServicerContext
    ) -> Iterator[pb.ToAgentBatch]:
        with _answering(context):
            node, session = self._caller(context)
            mailbox = self._coordinator.attach(node, session, self._locality(context))
            refused: list[FedloomError] = []
            reader = threading.Thread(
                target=self._read,
                args=(request_iterator, context, node, session, mailbox, refused),
                name=f"read-{node}",
                daemon=True,
            )
            context.add_callback(mailbox.close)
            reader.start()
            while messages := mailbox.get_all(MAX_BATCH):
                wire = pb.ToAgentBatch(messages=[codec.to_agent_message(message) for message in messages])
                self._coordinator.count_bytes(node, down=wire.ByteSize())
                yield wire
            self._coordinator.detach(node, session, "its connection ended", mailbox)
            if refused:
                raise refused[0]

    def UploadOffset(self, request: pb.UploadRequest, context: grpc.ServicerContext) -> pb.UploadReply:
        with _answering(context):
            node, _ = self._caller(context)
            received = self._coordinator.payloads.upload_offset(node, request.sha256, request.size)
            return pb.UploadReply(received=received)

    def download(self, request: pb.DownloadRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Stream a payload as raw chunks."""
        with _answering(context):
            node, _ = self._caller(context)
            for chunk in self._coordinator.payloads.download(request.sha256, request.offset):
                self._coordinator.count_bytes(node, down=len(chunk))
                yield chunk

    def upload(self, request_iterator: Iterator[bytes], context: grpc.ServicerContext) -> pb.UploadReply:
        """Take a payload as raw chunks."""
        with _answering(context):
            node, _ = self._caller(context)
            head = _parse(pb.UploadRequest, next(request_iterator, b""))
            received = self._coordinator.payloads.upload(
                node, head.sha256, head.size, head.offset, self._counted(node, _until_broken(request_iterator))
            )
            return pb.UploadReply(received=received)

    def _counted(self, node: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._coordinator.count_bytes(node, up=len(chunk))
            yield chunk

    def _read(
        self,
        requests: Iterator[pb.FromAgentBatch],
        context: grpc.ServicerContext,
        node: str,
        session: str,
        mailbox: Mailbox,
        refused: list[FedloomError],
    ) -> None:
        try:
            for wire in requests:
                self._coordinator.count_bytes(node, up=wire.ByteSize())
                if not wire.messages:
                    raise BadMessage(f"node {node!r} sent an empty batch; is the agent newer than this server?")
                for message in wire.messages:
                    self._coordinator.receive(node, session, codec.read_from_agent(message, node))
        except NotFound as exc:  # another session has taken this one's place
            self._coordinator.detach(node, session, str(exc), mailbox)
        except FedloomError as exc:
            _log.warning("node %s: %s", node, exc)
            refused.append(exc)
            self._coordinator.detach(node, session, str(exc), mailbox)
        except grpc.RpcError:
            self._coordinator.detach(node, session, "its connection broke", mailbox)
        except Exception:
            # gRPC ends the request iterator with a bare Exception when the stream is torn down.
            if context.is_active():
                _log.exception("node %s: its stream failed", node)
            self._coordinator.detach(node, session, "its connection broke", mailbox)

    def _caller(self, context: grpc.ServicerContext) -> tuple[str, str]:
        metadata = _authenticate(context, self._token)
        node, session = metadata.get("fedloom-node", ""), metadata.get("fedloom-session", "")
        if not node or not session:
            raise BadMessage("call without fedloom-node and fedloom-session in its metadata; register first")
        self._coordinator.check_session(node, session)
        return node, session

    def _locality(self, context: grpc.ServicerContext) -> str:
        depot = self._coordinator.payloads.depot
        proof = dict(context.invocation_metadata()).get("fedloom-locality", "")
        same_host = depot is not None and hmac.compare_digest(str(proof), f"host:{depot.nonce}")
        return "host" if same_host else "remote"


class ControlService(ControlServicer):
    """What people and their tools call."""

    def __init__(self, coordinator: Coordinator, runs: RunQueue, token: str) -> None:
        self._coordinator, self._runs, self._token = coordinator, runs, token

    def Submit(self, request: control_pb.SubmitRequest, context: grpc.ServicerContext) -> control_pb.SubmitReply:
        with _answering(context):
            _authenticate(context, self._token)
            try:
                values = json.loads(request.experiment_json)
            except (ValueError, RecursionError) as exc:
                raise BadMessage(f"submit: the experiment is not JSON: {exc}") from exc
            if not isinstance(values, dict):
                raise BadMessage(f"submit: expected the experiment as a JSON object, got a {type(values).__name__}")
            return control_pb.SubmitReply(run_id=self._runs.submit(values))

    def ListRuns(self, request: control_pb.ListRunsRequest, context: grpc.ServicerContext) -> control_pb.ListRunsReply:
        with _answering(context):
            _authenticate(context, self._token)
            rows = [control_pb.RunRow(**row) for row in self._runs.rows()]
            return control_pb.ListRunsReply(runs=rows)

    def Watch(self, request: control_pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[control_pb.WatchReply]:
        with _answering(context):
            _authenticate(context, self._token)
            with self._runs.watch(request.run_id) as events:
                context.add_callback(events.close)
                for event in events:
                    yield control_pb.WatchReply(event_json=json.dumps(event))

    def Stop(self, request: control_pb.StopRequest, context: grpc.ServicerContext) -> control_pb.StopReply:
        with _answering(context):
            _authenticate(context, self._token)
            return control_pb.StopReply(status=self._runs.stop(request.run_id))

    def ListNodes(
        self, request: control_pb.ListNodesRequest, context: grpc.ServicerContext
    ) -> control_pb.ListNodesReply:
        with _answering(context):
            _authenticate(context, self._token)
            return control_pb.ListNodesReply(nodes=[control_pb.NodeRow(**row) for row in self._coordinator.rows()])


def listen(
    coordinator: Coordinator, runs: RunQueue | None, host: str, port: int, token: str
) -> tuple[Callable[[], None], int]:
    """Start a gRPC server; returns what stops it, and the port it has (port 0 takes a free one).

    Raises:
        UsageError: the port is taken or the address is not this machine's.
    """
    pool = ThreadPoolExecutor(MAX_STREAMS, thread_name_prefix="grpc")
    server = grpc.server(
        pool,
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 2 << 20),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ),
    )
    fleet = FleetService(coordinator, token)
    add_FleetServicer_to_server(fleet, server)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("fedloom.proto.v1.Fleet", _raw_methods(fleet)),)
    )
    if runs is not None:
        add_ControlServicer_to_server(ControlService(coordinator, runs, token), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as exc:
        raise UsageError(
            f"cannot listen on {host}:{port}: the port is in use, or the address is not this machine's. "
            "Choose another --port (0 takes a free one)"
        ) from exc
    server.start()

    def stop() -> None:
        server.stop(grace=1.0).wait()
        pool.shutdown(wait=False)

    return stop, bound


def _raw_methods(fleet: FleetService) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Download and Upload, whose chunks are raw bytes."""
    return {
        "Download": grpc.unary_stream_rpc_method_handler(
            fleet.download, request_deserializer=pb.DownloadRequest.FromString
        ),
        "Upload": grpc.stream_unary_rpc_method_handler(
            fleet.upload, response_serializer=pb.UploadReply.SerializeToString
        ),
    }


def _authenticate(context: grpc.ServicerContext, token: str) -> dict[str, str]:
    metadata = {key: str(value) for key, value in context.invocation_metadata()}
    if token and not hmac.compare_digest(metadata.get("fedloom-token", ""), token):
        raise Unauthenticated("the call carries no token, or another server's; give the agent this server's token")
    return metadata


@contextlib.contextmanager
def _answering(context: grpc.ServicerContext) -> Iterator[None]:
    """Turn errors into statuses."""
    try:
        yield
    except FedloomError as exc:
        if exc.public is not None:
            _log.error("%s", exc)
        context.abort(grpc.StatusCode[exc.status], exc.public_message())
    except grpc.RpcError:
        raise
    except Exception as exc:
        if not context.is_active() or type(exc) is Exception:
            raise  # the caller is gone, or this is gRPC's own way out of `abort`
        _log.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, str(FedloomError.public))


def _until_broken(requests: Iterator[bytes]) -> Iterator[bytes]:
    """Chunks until the stream ends; a broken stream keeps what came, to be continued."""
    while True:
        try:
            chunk = next(requests)
        except StopIteration:
            return
        except Exception as exc:
            raise ServerUnreachable("upload: the stream broke; ask for the offset and continue") from exc
        if not chunk:
            raise BadMessage("upload: an empty chunk; chunks carry bytes, and the stream ends after the last")
        yield chunk


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except Exception as exc:
        raise BadMessage(f"expected a {kind.DESCRIPTOR.name} first, got {len(data)} other bytes") from exc
