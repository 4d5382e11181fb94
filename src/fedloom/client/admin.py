"""An administrator's calls: create tokens; list, label and revoke members."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import grpc

from fedloom.client.link import connect, translate
from fedloom.core.identity import Identity, JoinToken
from fedloom.proto.v1 import enroll_pb2 as pb
from fedloom.proto.v1.enroll_pb2_grpc import AdminStub

Reply = TypeVar("Reply")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberRow:
    """One member of a server."""

    name: str
    role: str
    labels: Mapping[str, str]
    enrolled_at: float
    """Seconds since 1970, as all times here; 0 if it has not happened."""
    expires_at: float
    revoked_at: float
    fingerprint: str
    """SHA-256 of the newest certificate."""
    token: str = ""
    """Id of the token it joined with; empty for the server's own administrator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """One join token of a server; its secret is not known there."""

    id: str
    name: str
    role: str
    labels: Mapping[str, str]
    uses: int
    used: int
    created_at: float
    """Seconds since 1970, as all times here; 0 if it has not happened."""
    expires_at: float
    revoked_at: float
    maker: str
    """The administrator who created it."""
    admitted: Sequence[str]
    """Members it has admitted."""


class AdminClient:
    """An administrator's connection to a server.

    Args:
        identity: of the administrator.
        timeout_s: seconds to wait for a response.
    """

    def __init__(self, identity: Identity, *, timeout_s: float = 10.0) -> None:
        self._address, self._timeout_s = identity.address, timeout_s
        self._channel = connect(identity.address, identity)
        self._stub = AdminStub(self._channel)

    def create_token(
        self, name: str, *, role: str = "node", ttl_s: float, uses: int = 1, labels: Mapping[str, str] | None = None
    ) -> JoinToken:
        """Create a token with which `uses` devices or users may join within `ttl_s` seconds."""
        request = pb.CreateTokenRequest(name=name, role=role, ttl_s=ttl_s, uses=uses, labels=labels or {})
        reply = self._call(self._stub.CreateToken, request)
        return JoinToken(address=reply.address, authority_sha256=reply.authority_sha256, secret=reply.secret)

    def members(self) -> Sequence[MemberRow]:
        """Return all members, revoked ones included."""
        reply = self._call(self._stub.ListMembers, pb.ListMembersRequest())
        return [
            MemberRow(
                name=row.name,
                role=row.role,
                labels=dict(row.labels),
                enrolled_at=row.enrolled_at,
                expires_at=row.expires_at,
                revoked_at=row.revoked_at,
                fingerprint=row.fingerprint,
                token=row.token,
            )
            for row in reply.members
        ]

    def revoke(self, name: str, *, keep_token: bool = False) -> Sequence[str]:
        """Revoke a member immediately, and the tokens it could rejoin with.

        Args:
            name: the member's.
            keep_token: leave the token it joined by as it is.

        Returns:
            The ids of the tokens that have ended.
        """
        reply = self._call(self._stub.Revoke, pb.RevokeRequest(name=name, keep_token=keep_token))
        return list(reply.ended_tokens)

    def tokens(self) -> Sequence[TokenRow]:
        """Return all tokens the server stores, oldest first."""
        return [_token(row) for row in self._call(self._stub.ListTokens, pb.ListTokensRequest()).tokens]

    def revoke_token(self, token_id: str) -> TokenRow:
        """Revoke a token; members it has admitted remain."""
        return _token(self._call(self._stub.RevokeToken, pb.RevokeTokenRequest(id=token_id)).token)

    def audit(self, last: int) -> Sequence[str]:
        """Get the latest lines of the audit log, one JSON object each, the oldest of them first."""
        return list(self._call(self._stub.Audit, pb.AuditRequest(last=last)).lines)

    def label(self, name: str, add: Mapping[str, str], remove: Sequence[str] = ()) -> Mapping[str, str]:
        """Change a member's labels; returns all its labels."""
        request = pb.LabelRequest(name=name, set=add, remove=remove)
        return dict(self._call(self._stub.Label, request).labels)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, method: Callable[..., Reply], request: object) -> Reply:
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as exc:
            raise translate(exc, self._address) from exc


def _token(row: pb.TokenRow) -> TokenRow:
    return TokenRow(
        id=row.id,
        name=row.name,
        role=row.role,
        labels=dict(row.labels),
        uses=row.uses,
        used=row.used,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        maker=row.maker,
        admitted=tuple(row.admitted),
    )
