"""Authorisation of calls: every servicer checks the caller here first."""

from __future__ import annotations

import functools
import hmac
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from cryptography import x509

from fedloom.core.errors import BadMessage, Forbidden, Unauthenticated
from fedloom.server.access.calls import OpenCalls
from fedloom.server.access.certificates import fingerprint_of
from fedloom.server.access.member_table import Member
from fedloom.server.access.members import Registry

PEOPLE = ("user", "admin")
ALLOWED: dict[str, tuple[str, ...]] = {
    "Fleet/Register": ("node",),
    "Fleet/Work": ("node",),
    "Fleet/UploadOffset": ("node",),
    "Fleet/Upload": ("node",),
    "Fleet/Download": ("node",),
    "Control/Submit": PEOPLE,
    "Control/ListRuns": PEOPLE,
    "Control/Watch": PEOPLE,
    "Control/Stop": PEOPLE,
    "Control/ListNodes": PEOPLE,
    "Results/Files": PEOPLE,
    "Results/Fetch": PEOPLE,
    "Results/Logs": PEOPLE,
    "Results/Delete": PEOPLE,
    "Results/Resume": PEOPLE,
    "Credentials/Renew": ("node", *PEOPLE),
    "Credentials/Confirm": ("node", *PEOPLE),
    "Admin/CreateToken": ("admin",),
    "Admin/ListMembers": ("admin",),
    "Admin/Revoke": ("admin",),
    "Admin/Label": ("admin",),
    "Admin/ListTokens": ("admin",),
    "Admin/RevokeToken": ("admin",),
    "Admin/Audit": ("admin",),
}
"""Roles allowed for each call. Users' calls about a run are for its owner, a node's calls for its own name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """The authenticated caller."""

    id: str = ""
    """The member's permanent id, unlike its name; empty if the server has no members."""
    name: str = ""
    """The member's role; empty if the server has no members."""
    role: str = "admin"
    labels: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""


class Gate(Protocol):
    """Authorises calls."""

    def admit(self, context: grpc.ServicerContext, call: str) -> Caller:
        """Return the caller. Raises `Unauthenticated` or `Forbidden`."""

    def enter(self, context: grpc.ServicerContext, call: str) -> None:
        """Check and count the caller of a call, before anything of it is read.

        Raises:
            Unauthenticated, Forbidden: as `admit`.
            LimitExceeded: the caller has too many of these open.
        """

    def check(self, caller: Caller) -> None:
        """Raise `Unauthenticated` if a caller admitted earlier would be rejected now."""

    def own_name(self, caller: Caller, node: str) -> None:
        """Raise `Forbidden` if a node uses another node's name."""


class TokenGate:
    """One shared secret for all callers: simulations, and servers without encryption.

    Args:
        token: the secret; empty accepts every caller.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def admit(self, context: grpc.ServicerContext, call: str) -> Caller:
        if self._token and not same_secret(metadata(context).get("fedloom-token", ""), self._token):
            raise Unauthenticated("the call carries no token, or another server's; give the agent this server's token")
        return Caller()

    def enter(self, context: grpc.ServicerContext, call: str) -> None:
        self.admit(context, call)

    def check(self, caller: Caller) -> None:
        """No-op: callers with a shared token cannot be revoked."""

    def own_name(self, caller: Caller, node: str) -> None:
        """No-op: callers with a shared token may use any name."""


class MemberGate:
    """Mutual TLS: the connection's certificate identifies the caller, the registry says whether it is still a member.

    Args:
        registry: of the server.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._open: dict[str, set[grpc.ServicerContext]] = defaultdict(set)
        self.calls = OpenCalls()

    def enter(self, context: grpc.ServicerContext, call: str) -> None:
        self.calls.enter(self._member(context, call)[0].name, call, context)

    def admit(self, context: grpc.ServicerContext, call: str) -> Caller:
        member, fingerprint = self._member(context, call)
        caller = Caller(id=member.id, name=member.name, role=member.role, labels=member.labels, fingerprint=fingerprint)
        with self._lock:
            self._open[member.name].add(context)
        if not context.add_callback(lambda: self._forget(member.name, context)):
            self._forget(member.name, context)
        self.check(caller)  # a revocation between the first look and the list of open calls
        return caller

    def check(self, caller: Caller) -> None:
        self._registry.admit(caller.fingerprint)

    def own_name(self, caller: Caller, node: str) -> None:
        if node != caller.name:
            raise Forbidden(f"the certificate is for node {caller.name!r}, but the call names node {node[:80]!r}")

    def cut(self, name: str) -> None:
        """End every open call of a member."""
        with self._lock:
            calls = list(self._open.get(name, ()))
        for context in calls:
            context.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it without types

    def _member(self, context: grpc.ServicerContext, call: str) -> tuple[Member, str]:
        """Return the caller and its certificate's fingerprint, if its role may make the call."""
        fingerprint = _fingerprint(peer_certificate(context))
        member = self._registry.admit(fingerprint)
        if member.role not in ALLOWED[call]:
            raise Forbidden(f"{call} is for {' and '.join(ALLOWED[call])}; {member.name!r} is a {member.role}")
        return member, fingerprint

    def _forget(self, name: str, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open[name].discard(context)
            if not self._open[name]:
                del self._open[name]


def peer_certificate(context: grpc.ServicerContext) -> bytes:
    """Return the certificate whose key the caller has proved to possess, PEM. Raises `Unauthenticated` without one."""
    shown = context.auth_context().get("x509_pem_cert")
    if not shown:
        raise Unauthenticated("the caller shows no certificate; join the server first: fedloom join - <TOKEN-FILE")
    return bytes(shown[0])


def metadata(context: grpc.ServicerContext) -> dict[str, str]:
    """Return a call's metadata."""
    return {key: str(value) for key, value in context.invocation_metadata()}


def same_secret(reported: str, secret: str) -> bool:
    """Compare a presented secret in constant time; as bytes, because callers may send any text."""
    return hmac.compare_digest(reported.encode(), secret.encode())


@functools.lru_cache(maxsize=8192)
def _fingerprint(certificate_pem: bytes) -> str:
    try:
        return fingerprint_of(x509.load_pem_x509_certificate(certificate_pem))
    except ValueError as exc:
        raise BadMessage("the caller's certificate cannot be read") from exc
