"""The gRPC services of the registry: joining, renewing, administration."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

import grpc
from cryptography import x509

from fedloom.core.addresses import DeviceAddress, with_port
from fedloom.core.errors import BadMessage, Forbidden
from fedloom.core.identity import RENEW_SHARE, pem
from fedloom.core.messages import PROTOCOL
from fedloom.proto.v1 import enroll_pb2 as pb
from fedloom.proto.v1.enroll_pb2_grpc import AdminServicer, CredentialsServicer, EnrollServicer
from fedloom.server.access import calls
from fedloom.server.access.audit import MAX_LINES, Audit
from fedloom.server.access.authority import Authority
from fedloom.server.access.calls import Pace
from fedloom.server.access.gate import Caller, Gate, MemberGate, peer_certificate
from fedloom.server.access.member_table import Member
from fedloom.server.access.members import Registry
from fedloom.server.access.status import answering
from fedloom.server.access.tokens import Token
from fedloom.server.fleet.coordinator import Coordinator

_log = logging.getLogger(__name__)

MAX_SECRET = 256
"""Characters of a join token's secret."""
MAX_PLACE = 64
"""Characters of the word for a key's place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Security:
    """Security of a server with members."""

    registry: Registry
    authority: Authority
    address: DeviceAddress
    """How devices reach this server, for join tokens."""
    lifetime_s: float
    """How long a member's certificate is valid."""
    allowed: Collection[str] = ()
    """Code and paths that users' runs may use besides installed plug-ins."""
    audit: Audit = field(default_factory=lambda: Audit(None))
    """The audit log."""

    def join_address(self, port: int) -> str:
        """Return the address for joining as devices see it; `port` is the one the server listens on."""
        return with_port(self.address.host, self.address.join_port or port)


class EnrollService(EnrollServicer):
    """Calls for clients without a certificate.

    Args:
        security: of the server.
        port: of the services members call.
    """

    def __init__(self, security: Security, port: int) -> None:
        self._security, self._port = security, port

    def Authority(self, request: pb.AuthorityRequest, context: grpc.ServicerContext) -> pb.AuthorityReply:
        with answering(context):
            return pb.AuthorityReply(certificate_pem=self._security.authority.certificate_pem.decode())

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
        with answering(context):
            if request.protocol != PROTOCOL:
                raise BadMessage(
                    f"the caller speaks protocol {request.protocol}, this server {PROTOCOL}: install the same fedloom "
                    "version on both"
                )
            if not 0 < len(request.secret) <= MAX_SECRET:
                raise BadMessage(f"secret: expected 1 to {MAX_SECRET} characters, got {len(request.secret)}")
            security = self._security

            def sign(name: str, role: str) -> x509.Certificate:
                return security.authority.sign_request(request.csr_pem, name, role, security.lifetime_s)

            member, certificate = security.registry.join(request.secret, sign, _place(request.place))
            _log.info("%s joined as %s from %s", member.name, member.role, context.peer(), extra=_about(member))
            security.audit.record("joined", member.name, context.peer(), role=member.role, token=member.token)
            return pb.JoinReply(
                name=member.name,
                role=member.role,
                certificate_pem=_text(certificate),
                port=self._security.address.member_port or self._port,
            )


class CredentialsService(CredentialsServicer):
    """Calls of members about themselves."""

    def __init__(self, security: Security, gate: Gate) -> None:
        self._security, self._gate = security, gate
        self._pace = Pace(calls.RENEWALS, calls.RENEWAL_S, "renewals of")

    def Renew(self, request: pb.RenewRequest, context: grpc.ServicerContext) -> pb.RenewReply:
        with answering(context):
            caller = self._gate.admit(context, "Credentials/Renew")
            security, place = self._security, _place(request.place)
            lifetime_s, left_s = security.registry.validity(caller.fingerprint)
            if request.only_if_due and left_s > lifetime_s * RENEW_SHARE:
                return pb.RenewReply(left_s=left_s)
            self._pace.enter(caller.name)
            fresh = security.authority.sign_request(request.csr_pem, caller.name, caller.role, security.lifetime_s)
            shown = x509.load_pem_x509_certificate(peer_certificate(context))
            if fresh.public_key() == shown.public_key():
                raise BadMessage("renew: expected a request with a new key, got one with that of the certificate shown")
            security.registry.renew(caller.fingerprint, fresh, place)
            _log.info("%s renewed its certificate", caller.name, extra=_about(caller))
            security.audit.notice("renewed", caller.name, context.peer())
            return pb.RenewReply(certificate_pem=_text(fresh), left_s=security.lifetime_s)

    def Confirm(self, request: pb.ConfirmRequest, context: grpc.ServicerContext) -> pb.ConfirmReply:
        with answering(context):
            self._gate.admit(context, "Credentials/Confirm")
            return pb.ConfirmReply()


class AdminService(AdminServicer):
    """Calls of administrators.

    Args:
        security: of the server.
        gate: of the server.
        port: of the Enroll service.
        coordinator: has the nodes' labels and work.
    """

    def __init__(self, security: Security, gate: MemberGate, port: int, coordinator: Coordinator) -> None:
        self._security, self._gate, self._port, self._coordinator = security, gate, port, coordinator

    def CreateToken(self, request: pb.CreateTokenRequest, context: grpc.ServicerContext) -> pb.CreateTokenReply:
        with answering(context):
            caller = self._gate.admit(context, "Admin/CreateToken")
            secret = self._security.registry.create_token(
                request.name, request.role, dict(request.labels), request.ttl_s, request.uses, caller.name
            )
            self._security.audit.record(
                "token made", caller.name, context.peer(), name=request.name, role=request.role, uses=request.uses
            )
            _log.info(
                "%s created a join token for %s %s: uses %d, valid for %g s",
                caller.name,
                request.role,
                request.name,
                request.uses,
                request.ttl_s,
            )
            return pb.CreateTokenReply(
                secret=secret,
                authority_sha256=self._security.authority.sha256,
                address=self._security.join_address(self._port),
            )

    def ListMembers(self, request: pb.ListMembersRequest, context: grpc.ServicerContext) -> pb.ListMembersReply:
        with answering(context):
            self._gate.admit(context, "Admin/ListMembers")
            rows = [
                pb.MemberRow(
                    name=member.name,
                    role=member.role,
                    labels=member.labels,
                    enrolled_at=member.enrolled_at,
                    expires_at=member.expires_at,
                    revoked_at=member.revoked_at,
                    fingerprint=member.fingerprint,
                    token=member.token,
                )
                for member in self._security.registry.members()
            ]
            return pb.ListMembersReply(members=rows)

    def Revoke(self, request: pb.RevokeRequest, context: grpc.ServicerContext) -> pb.RevokeReply:
        with answering(context):
            caller = self._gate.admit(context, "Admin/Revoke")
            if request.name == caller.name:
                raise Forbidden(f"{caller.name!r} cannot revoke itself; another administrator can")
            ended = self._security.registry.revoke(request.name, keep_token=request.keep_token)
            self._gate.cut(request.name)
            self._coordinator.expel(request.name, "revoked")
            _log.info("%s revoked %s", caller.name, request.name)
            self._security.audit.record(
                "revoked", caller.name, context.peer(), name=request.name, tokens=" ".join(ended)
            )
            return pb.RevokeReply(ended_tokens=ended)

    def Label(self, request: pb.LabelRequest, context: grpc.ServicerContext) -> pb.LabelReply:
        with answering(context):
            caller = self._gate.admit(context, "Admin/Label")
            labels = self._security.registry.label(request.name, dict(request.set), list(request.remove))
            self._coordinator.label(request.name, labels)
            self._security.audit.record(
                "labelled", caller.name, context.peer(), name=request.name, labels=str(dict(labels))
            )
            _log.info("%s set the labels of %s to %s", caller.name, request.name, dict(labels))
            return pb.LabelReply(labels=labels)

    def ListTokens(self, request: pb.ListTokensRequest, context: grpc.ServicerContext) -> pb.ListTokensReply:
        with answering(context):
            self._gate.admit(context, "Admin/ListTokens")
            return pb.ListTokensReply(tokens=[_token_row(token) for token in self._security.registry.tokens()])

    def RevokeToken(self, request: pb.RevokeTokenRequest, context: grpc.ServicerContext) -> pb.RevokeTokenReply:
        with answering(context):
            caller = self._gate.admit(context, "Admin/RevokeToken")
            ended = self._security.registry.end_token(request.id)
            _log.info("%s revoked token %s for %s", caller.name, ended.id, ended.name)
            self._security.audit.record("token revoked", caller.name, context.peer(), token=ended.id, name=ended.name)
            return pb.RevokeTokenReply(token=_token_row(ended))

    def Audit(self, request: pb.AuditRequest, context: grpc.ServicerContext) -> pb.AuditReply:
        with answering(context):
            self._gate.admit(context, "Admin/Audit")
            return pb.AuditReply(lines=self._security.audit.last(min(request.last, MAX_LINES)))


def _token_row(token: Token) -> pb.TokenRow:
    return pb.TokenRow(
        id=token.id,
        name=token.name,
        role=token.role,
        labels=token.labels,
        uses=token.uses,
        used=token.used,
        created_at=token.created_at,
        expires_at=token.expires_at,
        revoked_at=token.revoked_at,
        maker=token.maker,
        admitted=token.admitted,
    )


def _about(who: Member | Caller) -> dict[str, str]:
    """Return the node of a log line, if it is about one."""
    return {"node": who.name} if who.role == "node" else {}


def _place(word: str) -> str:
    if len(word) > MAX_PLACE:
        raise BadMessage(f"place: expected at most {MAX_PLACE} characters, got {len(word)}")
    return word


def _text(certificate: x509.Certificate) -> str:
    return pem(certificate).decode()
