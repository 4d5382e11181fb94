"""Starts the server's gRPC ports: services, limits of connections, certificates."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import grpc

from fedloom.proto.v1.control_pb2_grpc import add_ControlServicer_to_server
from fedloom.proto.v1.enroll_pb2_grpc import (
    add_AdminServicer_to_server,
    add_CredentialsServicer_to_server,
    add_EnrollServicer_to_server,
)
from fedloom.proto.v1.results_pb2_grpc import add_ResultsServicer_to_server
from fedloom.server.access.audit import Audit
from fedloom.server.access.authority import Authority
from fedloom.server.access.calls import ENROLL_THREADS, Silence, Threads
from fedloom.server.access.control_service import ControlService
from fedloom.server.access.enroll_service import AdminService, CredentialsService, EnrollService, Security
from fedloom.server.access.event_loop import serving_loop
from fedloom.server.access.fleet_service import FleetService, methods
from fedloom.server.access.gate import Gate, MemberGate, TokenGate
from fedloom.server.access.port import Port
from fedloom.server.access.request_parsing import Services
from fedloom.server.access.results_service import ResultsService
from fedloom.server.access.submission import Submissions
from fedloom.server.access.work_streams import WorkStreams
from fedloom.server.fleet.coordinator import Coordinator
from fedloom.server.run_queue import RunQueue

MAX_MESSAGE_BYTES = 16 << 20
"""Size limit of control messages."""
MAX_ENROLL_BYTES = 16 << 10
"""Size limit of messages from a caller without a certificate."""
ENROLL_CONNECTIONS = 256
"""Limit of open connections to the enrolment port; further ones are rejected."""
HANDSHAKE_S = 5.0
"""Seconds a connection to the members' port may take to become one."""
MAX_CONNECTIONS = 16_384
"""Connections to the members' port at once, if the process may have as many descriptors."""
SPARE_DESCRIPTORS = 1024
"""Descriptors reserved for everything else, or half of the limit."""
MAX_STREAMS = 256
"""Calls open at once on one connection."""
ENROLL_REQUEST_S = 5.0
"""Seconds a call there may take to say what it wants: it holds one of few threads."""
ENROLL_CONNECTION_S, ENROLL_GRACE_S = 20.0, 10.0
"""Seconds after which such a connection accepts no more calls, and after which its calls are cancelled."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


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
    """Start the gRPC ports; port 0 selects a free one.

    Args:
        coordinator: of the agents' sessions and work.
        runs: queue that serves users' calls; None disables them.
        host, port: the address to listen on.
        token: shared secret of a server without members; connections are then not encrypted.
        security: of a server with members: mutual TLS on `port`, and Enroll on `enroll_port`.
        enroll_port: port of the Enroll service.

    Raises:
        UsageError: a port is taken or the address is not this machine's.
    """
    members = MemberGate(security.registry) if security is not None else None
    gate: Gate = members or TokenGate(token)
    audit, threads, silence, loop = _audit(security, runs), Threads(), Silence(), serving_loop()
    port_options = (*_limits(MAX_MESSAGE_BYTES), *_OPTIONS, *_connections())
    credentials = _credentials(security.authority, members_only=True) if security is not None else None
    server = Port(host, port, credentials, port_options)
    services, fleet = Services(gate.enter, silence, threads.of), FleetService(coordinator, gate, audit, silence)
    services.add_registered_method_handlers("fedloom.proto.v1.Fleet", methods(fleet))
    registered = cast(grpc.Server, services)  # takes methods as a server does
    streams = WorkStreams(coordinator, gate, fleet.begin, threads.fleet, loop)
    services.add("fedloom.proto.v1.Fleet", "Work", streams.serve)
    if runs is not None:
        allowed = security.allowed if security is not None else ()
        submissions = Submissions(allowed, shares_code=security is None)
        add_ControlServicer_to_server(ControlService(coordinator, runs, gate, audit, submissions), registered)
        add_ResultsServicer_to_server(ResultsService(runs, gate, audit, silence, submissions), registered)
    ports = [server]
    if security is not None and members is not None:
        open_options = (*_limits(MAX_ENROLL_BYTES), *_OPTIONS, *_unknown_callers())
        open_to_all = _credentials(security.authority, members_only=False)
        enrolling = Port(host, enroll_port, open_to_all, open_options, most_calls=ENROLL_THREADS * 4)
        joining = Services(lambda context, call: None, silence, lambda call: threads.enroll, request_s=ENROLL_REQUEST_S)
        add_EnrollServicer_to_server(EnrollService(security, server.number), cast(grpc.Server, joining))
        add_CredentialsServicer_to_server(CredentialsService(security, gate), registered)
        add_AdminServicer_to_server(AdminService(security, members, enrolling.number, coordinator), registered)
        enrolling.serve(joining)
        ports.insert(0, enrolling)
    server.serve(services)
    silence.start()

    def stop() -> None:
        silence.stop()
        for each in ports:
            each.stop()
        threads.shutdown()

    return Listening(stop=stop, port=server.number, enroll_port=ports[0].number if security is not None else 0)


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


def _unknown_callers() -> tuple[tuple[str, int], ...]:
    """Limit connections of unknown callers: a call without a request occupies a thread, a connection memory."""
    return (
        ("grpc.max_allowed_incoming_connections", ENROLL_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", round(ENROLL_CONNECTION_S * 1000)),
        ("grpc.max_connection_age_ms", round(ENROLL_CONNECTION_S * 1000)),
        ("grpc.max_connection_age_grace_ms", round(ENROLL_GRACE_S * 1000)),
    )


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
