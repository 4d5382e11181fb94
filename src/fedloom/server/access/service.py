"""The gRPC services of the server: thin servicers over the coordinator, the payload store and the run queue.

Every method does three things: check the caller, translate the message, call a plain function. Errors of the catalogue
become their status; anything else becomes INTERNAL with a neutral sentence, and its traceback goes to the log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from fedloom.core.addresses import with_port
from fedloom.core.errors import (
    BadMessage,
    FedloomError,
    NotFound,
    ServerUnreachable,
    UsageError,
)
from fedloom.core.records import JsonObject
from fedloom.proto.v1 import codec
from fedloom.proto.v1 import control_pb2 as control_pb
from fedloom.proto.v1 import fleet_pb2 as pb
from fedloom.proto.v1.control_pb2_grpc import ControlServicer, add_ControlServicer_to_server
from fedloom.proto.v1.enroll_pb2_grpc import (
    add_AdminServicer_to_server,
    add_CredentialsServicer_to_server,
    add_EnrollServicer_to_server,
)
from fedloom.proto.v1.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from fedloom.proto.v1.results_pb2_grpc import add_ResultsServicer_to_server
from fedloom.server.access.audit import Audit
from fedloom.server.access.authority import Authority
from fedloom.server.access.calls import CHUNK_S, Silence, Threads
from fedloom.server.access.enroll_service import AdminService, CredentialsService, EnrollService, Security
from fedloom.server.access.gate import Caller, Gate, MemberGate, TokenGate, metadata, same_secret
from fedloom.server.access.ownership import require_own_run
from fedloom.server.access.public_text import public_value, without_paths
from fedloom.server.access.reception import receive
from fedloom.server.access.request_parsing import Reading
from fedloom.server.access.results_service import ResultsService
from fedloom.server.access.status import answering
from fedloom.server.access.submission import Submissions
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.fleet.nodes import Mailbox
from fedloom.server.run_queue import RunQueue
from fedloom.server.run_views import Owner

M = TypeVar("M", bound=Message)
_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 << 20
"""Size limit of control messages."""
MAX_BATCH = 16
"""Messages sent to an agent together; their inlined payloads stay well under MAX_MESSAGE_BYTES."""
MAX_ENROLL_BYTES = 16 << 10
"""Size limit of messages from a caller without a certificate."""
WARN_S = 60.0
"""Minimum number of seconds between two log lines about a node's messages."""
ENROLLING = 4
"""Joins in progress; four times as many may wait, further ones are rejected."""
ENROLL_CONNECTIONS = 256
"""Limit of open connections to the enrolment port; further ones are rejected."""
HANDSHAKE_S = 5.0
"""Seconds a connection to the members' port may take to become one."""
MAX_CONNECTIONS = 16_384
"""Connections to the members' port at once, where the process may have as many descriptors."""
SPARE_DESCRIPTORS = 1024
"""Descriptors reserved for everything else, or half of the limit."""
MAX_STREAMS = 256
"""Calls open at once on one connection."""
ENROLL_REQUEST_S = 5.0
"""Seconds a call there may take to say what it wants: it holds one of few threads."""
ENROLL_CONNECTION_S, ENROLL_GRACE_S = 20.0, 10.0
"""Seconds after which such a connection accepts no more calls, and after which its calls are cancelled."""

_STOP_S = 5.0
"""Seconds a stopping server waits for cancelled calls."""
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


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
            self._audit.notice("fetched", node, context.peer(), sha256=request.sha256[:64])
            chunks = self._coordinator.download(node, request.sha256, request.offset)
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
            if len(self._warned) >= MAX_STREAMS:
                self._warned.clear()
            self._warned[node] = now
            _log.warning("node %s: %s", node, exc, extra={"node": node})

    def _locality(self, context: grpc.ServicerContext) -> str:
        depot = self._coordinator.payloads.depot
        proof = metadata(context).get("fedloom-locality", "")
        same_host = depot is not None and same_secret(proof, f"host:{depot.nonce}")
        return "host" if same_host else "remote"


class ControlService(ControlServicer):
    """Calls of users and their tools."""

    def __init__(
        self,
        coordinator: Coordinator,
        runs: RunQueue,
        gate: Gate,
        audit: Audit,
        submissions: Submissions,
    ) -> None:
        self._coordinator, self._runs, self._gate = coordinator, runs, gate
        self._audit, self._submissions = audit, submissions

    def Submit(self, request: control_pb.SubmitRequest, context: grpc.ServicerContext) -> control_pb.SubmitReply:
        with answering(context, request.experiment_json):
            caller = self._gate.admit(context, "Control/Submit")
            try:
                values = json.loads(request.experiment_json)
                json.dumps(values, ensure_ascii=False).encode()  # an escape may be half a character, which is no text
            except (ValueError, RecursionError) as exc:
                raise BadMessage(f"submit: the experiment is not JSON: {exc}") from exc
            if not isinstance(values, dict):
                raise BadMessage(f"submit: expected the experiment as a JSON object, got a {type(values).__name__}")
            values = self._submissions.admit(caller, values)
            owner, notes = Owner(caller.id, caller.name, caller.role if caller.id else ""), list[str]()
            run_id = self._runs.submit(
                values, owner, lambda experiment: notes.extend(receive(self._coordinator, experiment, owner))
            )
            self._audit.record("submitted", caller.name, context.peer(), run=run_id)
            known = request.experiment_json
            return control_pb.SubmitReply(run_id=run_id, notes=[without_paths(note, known) for note in notes])

    def ListRuns(self, request: control_pb.ListRunsRequest, context: grpc.ServicerContext) -> control_pb.ListRunsReply:
        with answering(context):
            caller = self._gate.admit(context, "Control/ListRuns")
            rows = self._runs.rows() if caller.role == "admin" else self._runs.rows(caller.id)
            return control_pb.ListRunsReply(runs=[control_pb.RunRow(**_public_row(row)) for row in rows])

    def Watch(self, request: control_pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[control_pb.WatchReply]:
        with answering(context):
            caller = self._gate.admit(context, "Control/Watch")
            require_own_run(self._runs, caller, request.run_id)
            known = self._runs.settings_text(request.run_id)
            self._audit.notice("watched", caller.name, context.peer(), run=request.run_id)
            with self._runs.watch(request.run_id) as events:
                if not context.add_callback(events.close):
                    events.close()
                for event in events:
                    self._gate.check(caller)
                    yield control_pb.WatchReply(event_json=json.dumps(public_value(event, known)))

    def Stop(self, request: control_pb.StopRequest, context: grpc.ServicerContext) -> control_pb.StopReply:
        with answering(context):
            caller = self._gate.admit(context, "Control/Stop")
            require_own_run(self._runs, caller, request.run_id)
            status = self._runs.stop(request.run_id)
            self._audit.record("stopped", caller.name, context.peer(), run=request.run_id, status=status)
            return control_pb.StopReply(status=status)

    def ListNodes(
        self, request: control_pb.ListNodesRequest, context: grpc.ServicerContext
    ) -> control_pb.ListNodesReply:
        with answering(context):
            self._gate.admit(context, "Control/ListNodes")
            return control_pb.ListNodesReply(nodes=[control_pb.NodeRow(**row) for row in self._coordinator.rows()])


def _public_row(row: JsonObject) -> JsonObject:
    """Return a run's row without paths of the server."""
    return {**row, "error": without_paths(str(row["error"]))}


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """A running server."""

    stop: Callable[[], None]
    port: int
    enroll_port: int = 0
    """Port of the Enroll service; 0 if the server has no members."""


def listen(
    coordinator: Coordinator,
    runs: RunQueue | None,
    host: str,
    port: int,
    *,
    token: str = "",
    security: Security | None = None,
    enroll_port: int = 0,
) -> Listening:
    """Start listening; port 0 takes a free one.

    Args:
        coordinator: of the agents.
        runs: for users' calls; None without a queue.
        host, port: the address to listen on.
        token: shared secret of a server without members; connections are then not encrypted.
        security: of a server with members: mutual TLS on `port`, and Enroll on `enroll_port`.
        enroll_port: port of the Enroll service.

    Raises:
        UsageError: a port is taken or the address is not this machine's.
    """
    members = MemberGate(security.registry) if security is not None else None
    gate: Gate = members or TokenGate(token)
    audit, threads, silence = _audit(security, runs), Threads(), Silence()
    server = grpc.server(
        threads.fleet,
        interceptors=[Reading(gate.enter, silence, threads.of)],
        options=(*_limits(MAX_MESSAGE_BYTES), *_OPTIONS, *_connections()),
    )
    fleet = FleetService(coordinator, gate, audit, silence)
    add_FleetServicer_to_server(fleet, server)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("fedloom.proto.v1.Fleet", _raw_methods(fleet)),)
    )
    if runs is not None:
        allowed = security.allowed if security is not None else ()
        submissions = Submissions(allowed)
        add_ControlServicer_to_server(ControlService(coordinator, runs, gate, audit, submissions), server)
        add_ResultsServicer_to_server(ResultsService(runs, gate, audit, silence, submissions), server)
    enrolling: grpc.Server | None = None
    if security is not None and members is not None:
        bound = _bind(server, host, port, _credentials(security.authority, members_only=True))
        enrolling = grpc.server(
            ThreadPoolExecutor(ENROLLING, thread_name_prefix="enroll"),
            interceptors=[Reading(lambda context, call: None, silence, request_s=ENROLL_REQUEST_S)],
            options=(*_limits(MAX_ENROLL_BYTES), *_OPTIONS, *_strangers()),
            maximum_concurrent_rpcs=ENROLLING * 4,
        )
        add_EnrollServicer_to_server(EnrollService(security, bound), enrolling)
        enroll_port = _bind(enrolling, host, enroll_port, _credentials(security.authority, members_only=False))
        add_CredentialsServicer_to_server(CredentialsService(security, gate), server)
        add_AdminServicer_to_server(AdminService(security, members, enroll_port, coordinator), server)
        enrolling.start()
    else:
        bound, enroll_port = _bind(server, host, port, None), 0
    server.start()
    silence.start()

    def stop() -> None:
        silence.stop()
        for each in filter(None, (enrolling, server)):
            if not each.stop(grace=1.0).wait(_STOP_S):
                _log.warning("calls are still running %g s after the server stopped listening", _STOP_S)
        threads.shutdown()

    return Listening(stop=stop, port=bound, enroll_port=enroll_port)


def _audit(security: Security | None, runs: RunQueue | None) -> Audit:
    """Return the audit log: the registry's, or the one next to the runs; a simulation has none."""
    if security is not None:
        return security.audit
    return Audit(runs.folder if runs is not None else None)


def _limits(max_bytes: int) -> tuple[tuple[str, int], ...]:
    return ("grpc.max_receive_message_length", max_bytes), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)


def _connections() -> tuple[tuple[str, int], ...]:
    """Return the limits of the members' port: unknown callers get no further than a short handshake."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        descriptors = MAX_CONNECTIONS + SPARE_DESCRIPTORS
    free = max(descriptors // 2, descriptors - SPARE_DESCRIPTORS)
    return (
        ("grpc.max_allowed_incoming_connections", min(MAX_CONNECTIONS, free)),
        ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_S * 1000)),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
    )


def raise_descriptor_limit() -> None:
    """Raise this process's descriptor limit to the maximum: each connection takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _strangers() -> tuple[tuple[str, int], ...]:
    """Limit connections of unknown callers: a call without a request occupies a thread, a connection memory."""
    return (
        ("grpc.max_allowed_incoming_connections", ENROLL_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", round(ENROLL_CONNECTION_S * 1000)),
        ("grpc.max_connection_age_ms", round(ENROLL_CONNECTION_S * 1000)),
        ("grpc.max_connection_age_grace_ms", round(ENROLL_GRACE_S * 1000)),
    )


def _bind(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    address = with_port(host, port)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as exc:
        raise UsageError(
            f"cannot listen on {address}: the port is in use, or the address is not this machine's. "
            "Choose another --port (0 takes a free one)"
        ) from exc


def _credentials(authority: Authority, *, members_only: bool) -> grpc.ServerCredentials:
    """Return the server's credentials; the certificate is reread for every connection, so that renewals take effect."""
    roots = authority.certificate_pem if members_only else None

    def now() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([authority.server_pair()], roots)

    last = [authority.server_pair()]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        pair = authority.server_pair()
        if pair == last[0]:
            return None
        last[0] = pair
        return now()

    return grpc.dynamic_ssl_server_credentials(
        now(),
        fetch,  # type: ignore[arg-type]  # None keeps the last one, which grpc-stubs do not know
        require_client_authentication=members_only,
    )


def _raw_methods(fleet: FleetService) -> dict[str, grpc.RpcMethodHandler[object, object]]:
    """Download and Upload, whose chunks are raw bytes."""
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
