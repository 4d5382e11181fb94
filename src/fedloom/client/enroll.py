"""Joining a server, and keeping the certificate fresh."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc

from fedloom.client.link import connect, connect_trusting, translate
from fedloom.client.proxy import checked, open_tunnel, proxy_for
from fedloom.core.errors import FedloomError, ServerUnreachable, Unauthenticated, UsageError
from fedloom.core.identity import (
    Identity,
    JoinToken,
    authority_sha256,
    certificate_request,
    default_folder,
    key_pem,
    make_key,
)
from fedloom.core.messages import PROTOCOL
from fedloom.proto.v1 import enroll_pb2 as pb
from fedloom.proto.v1.enroll_pb2_grpc import CredentialsStub, EnrollStub

_log = logging.getLogger(__name__)

_TIMEOUT_S = 20.0
_RENEW_SHARE = 1 / 3
"""A certificate is renewed when this fraction of its validity is left."""
_LOOK_EVERY_S = 3600.0
"""Maximum number of seconds between a node's checks of its certificate, for clocks that jump."""
_LOOK_AGAIN_S = 0.2
_ATTEMPT_S = 600.0
"""Minimum number of seconds between two attempts to renew, or a tenth of the validity where that is shorter."""


def join(token: str, folder: Path | None = None, proxy: str = "") -> Identity:
    """Enrol with the server that issued a token, and save the identity.

    The server is verified before the secret is sent: its authority's certificate must have the token's digest, and the
    connection must be to a server of that authority.

    Args:
        token: as `fedloom token create` printed it.
        folder: the identity's folder; by default the role's.
        proxy: URL of the HTTP proxy to the server, saved with the identity; empty takes the environment's, `none` is
            none.

    Raises:
        UsageError: the text is not a token, the proxy's URL is not one, or the folder already contains an identity.
        Unauthenticated: the server is not the token's, or does not take the token.
        ServerUnreachable: no server responds.
    """
    ticket = JoinToken.decode(token)
    if folder is not None:
        _check_free(folder)
    authority = _verified_authority(ticket, checked(proxy))
    key = make_key()
    with contextlib.closing(connect_trusting(ticket.address, authority, proxy)) as channel:
        request = pb.JoinRequest(protocol=PROTOCOL, secret=ticket.secret, csr_pem=certificate_request(key))
        try:
            reply = EnrollStub(channel).Join(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as exc:
            raise translate(exc, ticket.address) from exc
    identity = Identity(
        folder=folder or _free_default(reply.role, reply.name),
        name=reply.name,
        role=reply.role,
        address=f"{ticket.address.rpartition(':')[0]}:{reply.port}",
        key=key_pem(key),
        certificate=reply.certificate_pem.encode(),
        authority=authority,
        proxy=proxy,
    )
    identity.save()
    return identity


def _verified_authority(ticket: JoinToken, proxy: str) -> bytes:
    """Return the authority's certificate, which is public, after comparing its digest with the token's."""
    try:
        shown = _shown_certificate(ticket.address, proxy_for(ticket.address, proxy))
    except (OSError, ValueError) as exc:
        raise ServerUnreachable(
            f"no server responds at {ticket.address}, the token's address: {exc}. Is `fedloom serve` "
            "running, and can this machine reach that port? If the address is wrong, start the server with --address "
            "and create another token"
        ) from exc
    with contextlib.closing(connect_trusting(ticket.address, shown, proxy)) as channel:
        try:
            reply = EnrollStub(channel).Authority(pb.AuthorityRequest(), timeout=_TIMEOUT_S)
            reported = authority_sha256(reply.certificate_pem.encode())
        except grpc.RpcError as exc:
            raise translate(exc, ticket.address) from exc
        except ValueError as exc:
            raise Unauthenticated(f"the server at {ticket.address} sent no authority certificate: {exc}") from exc
    if reported != ticket.authority_sha256:
        raise Unauthenticated(
            f"the server at {ticket.address} did not create this token: its authority is {reported[:16]}…, the "
            f"token says {ticket.authority_sha256[:16]}…. The token's secret was not sent"
        )
    return reply.certificate_pem.encode()


def _shown_certificate(address: str, proxy: str) -> bytes:
    """Return the certificate that a server presents, PEM, not verified."""
    host, _, port = address.rpartition(":")
    if not proxy:
        return ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).encode()
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with (
        contextlib.closing(open_tunnel(proxy, address, _TIMEOUT_S)) as tunnel,
        unverified.wrap_socket(tunnel) as connection,
    ):
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"").encode()


def _free_default(role: str, name: str) -> Path:
    """Return the role's folder, or one next to it if that is taken: a used token's identity must be saved somewhere."""
    folder = default_folder(role)
    return folder if not (folder / "server.json").exists() else folder.with_name(f"{folder.name}-{name}")


def _check_free(folder: Path) -> None:
    if (folder / "server.json").exists():
        raise UsageError(f"{folder} already contains an identity; choose another --identity, or move it away")


def renew(identity: Identity) -> Identity:
    """Replace an identity's key and certificate: save and use the new ones once, which revokes the old certificate.

    Raises:
        Unauthenticated: the server does not accept the current certificate (any more).
        ServerUnreachable: no server responds.
    """
    fresh = get_fresh(identity)
    confirm(fresh)
    return fresh


def get_fresh(identity: Identity) -> Identity:
    """Get a fresh key and certificate and save them; the old certificate is valid until the fresh one is used.

    If another process has just done so, its key and certificate are returned.

    Raises:
        as `renew`.
    """
    with identity.locked():
        present = Identity.load(identity.folder)
        if present.certificate != identity.certificate:
            return replace(identity, key=present.key, certificate=present.certificate)
        key = make_key()
        with contextlib.closing(connect(identity.address, identity)) as channel:
            try:
                request = pb.RenewRequest(csr_pem=certificate_request(key))
                reply = CredentialsStub(channel).Renew(request, timeout=_TIMEOUT_S)
            except grpc.RpcError as exc:
                raise translate(exc, identity.address) from exc
        fresh = replace(identity, key=key_pem(key), certificate=reply.certificate_pem.encode())
        fresh.save_pair()
    return fresh


def confirm(fresh: Identity) -> None:
    """Use a fresh certificate for the first time, which revokes the older ones.

    Raises:
        Unauthenticated: the server does not accept it.
        ServerUnreachable: no server responds; the next call with it has the same effect.
    """
    with contextlib.closing(connect(fresh.address, fresh)) as channel:
        try:
            CredentialsStub(channel).Confirm(pb.ConfirmRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as exc:
            raise translate(exc, fresh.address) from exc


def renewal_due_s(identity: Identity) -> float:
    """Return the seconds until the certificate should be renewed; <= 0 if it is due."""
    return identity.remaining_s() - identity.lifetime_s() * _RENEW_SHARE


def attempt_every_s(identity: Identity) -> float:
    """Return the seconds between two attempts to renew, at least: ten minutes, less for short validities."""
    return min(_ATTEMPT_S, identity.lifetime_s() / 10)


class Renewer:
    """Renews the certificate of a running node, in a separate thread.

    Args:
        identity: the node's.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._since = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fedloom-renewer", daemon=True)

    def start(self) -> None:
        """Start renewing it."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(min(_LOOK_EVERY_S, max(_LOOK_AGAIN_S, self._due_s()))):
            if self._due_s() > 0:
                continue
            self._attempt()
            if self._stop.wait(attempt_every_s(self.identity)):
                return

    def _due_s(self) -> float:
        """Return the seconds until it is due, by this machine's clock or by the time this process runs."""
        lifetime_s = self.identity.lifetime_s()
        return min(renewal_due_s(self.identity), self._since + lifetime_s * (1 - _RENEW_SHARE) - time.monotonic())

    def _attempt(self) -> None:
        about = {"node": self.identity.name}
        try:
            self.identity = get_fresh(self.identity)  # before it ends the one that connections were made with
            self._since = time.monotonic()
            confirm(self.identity)
            lifetime_s = self.identity.lifetime_s()
            _log.info("certificate of %s renewed, valid for %.0f s", self.identity.name, lifetime_s, extra=about)
        except FedloomError as exc:
            _log.warning(
                "the certificate cannot be renewed: %s%s; the next attempt is in %.0f s",
                exc,
                f". And {ended}" if (ended := self.identity.ended()) else "",
                attempt_every_s(self.identity),
                extra=about,
            )
