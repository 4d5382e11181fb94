"""Joining a server, and keeping the certificate fresh."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from fedloom.client.link import connect, connect_trusting, translate
from fedloom.client.proxy import checked, proxy_for
from fedloom.client.shown_certificate import shown_certificate
from fedloom.core.errors import BadMessage, FedloomError, ServerUnreachable, Unauthenticated, UsageError
from fedloom.core.identity import (
    RENEW_SHARE,
    ROLES,
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

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of members."""
_TIMEOUT_S = 20.0
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
        BadMessage: it answers with a name, a role or a certificate that no server gives.
    """
    ticket = JoinToken.decode(token)
    if folder is not None:
        _check_free(folder)
    authority = _verified_authority(ticket, checked(proxy))
    key, place = make_key(), secrets.token_hex(16)
    with contextlib.closing(connect_trusting(ticket.address, authority, proxy)) as channel:
        request = pb.JoinRequest(protocol=PROTOCOL, secret=ticket.secret, csr_pem=certificate_request(key), place=place)
        try:
            reply = EnrollStub(channel).Join(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as exc:
            raise translate(exc, ticket.address) from exc
    _check_reply(reply)
    _require_ours(reply.certificate_pem, key, authority)
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
    identity.save(place)
    return identity


def _check_reply(reply: pb.JoinReply) -> None:
    """Refuse a name or role that no server gives: they are parts of paths and of texts here."""
    if reply.role not in ROLES or not _NAME.fullmatch(reply.name) or not 0 < reply.port < 65536:
        raise BadMessage(
            f"the server admits this machine as {reply.role[:20]!r} {reply.name[:80]!r} at port {reply.port}; expected "
            f"one of {', '.join(ROLES)}, a member's name and a port"
        )


def _require_ours(certificate_pem: str, key: ec.EllipticCurvePrivateKey, authority: bytes) -> None:
    """Refuse a certificate that is not for this machine's key, or not signed by the server's authority.

    Raises:
        BadMessage: says which.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature) as exc:
        raise BadMessage(f"the server sent no certificate signed by its authority: {type(exc).__name__}") from exc
    if certificate.public_key() != key.public_key():
        raise BadMessage("the server sent a certificate for another key than this machine's")


def _verified_authority(ticket: JoinToken, proxy: str) -> bytes:
    """Return the authority's certificate, which is public, after comparing its digest with the token's."""
    try:
        shown = shown_certificate(ticket.address, proxy_for(ticket.address, proxy), _TIMEOUT_S)
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


def get_fresh(identity: Identity, *, only_if_due: bool = False) -> Identity:
    """Get a fresh key and certificate and save them; the old certificate is valid until the fresh one is used.

    If another process has just done so, its key and certificate are returned.

    Args:
        identity: as it is used now.
        only_if_due: leave it as it is unless a third or less of its validity is left by the server's clock.

    Raises:
        UsageError: the identity's folder cannot be written.
        and as `renew`.
    """
    with identity.locked():
        present = Identity.load(identity.folder)
        if present.certificate != identity.certificate and not identity.is_newer_than(present):
            return replace(identity, key=present.key, certificate=present.certificate)
        receipt = identity.receipt().tried()
        _writing(identity, lambda: receipt.save(identity.folder))
        key = make_key()
        request = pb.RenewRequest(csr_pem=certificate_request(key), place=receipt.place, only_if_due=only_if_due)
        with contextlib.closing(connect(identity.address, identity)) as channel:
            try:
                reply = CredentialsStub(channel).Renew(request, timeout=_TIMEOUT_S)
            except grpc.RpcError as exc:
                raise translate(exc, identity.address) from exc
        if only_if_due and not reply.certificate_pem:
            _writing(identity, lambda: receipt.got(identity.certificate, reply.left_s).save(identity.folder))
            return identity
        _require_ours(reply.certificate_pem, key, identity.authority)
        fresh = replace(identity, key=key_pem(key), certificate=reply.certificate_pem.encode())
        _writing(identity, fresh.save_pair)
    return fresh


def _writing(identity: Identity, write: Callable[[], None]) -> None:
    """Write to an identity's folder, and name it where that fails."""
    try:
        write()
    except OSError as exc:
        raise UsageError(
            f"{identity.folder} cannot be written ({exc.strerror or exc}), so the certificate cannot be renewed. Make "
            "it writable for this user, with a few KiB free on its disk"
        ) from exc


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
    """Return the seconds until the certificate should be renewed, by this machine's clocks; <= 0 if it is due."""
    return identity.remaining_s() - identity.lifetime_s() * RENEW_SHARE


def attempt_due_s(identity: Identity) -> float:
    """Return the seconds until the server should be asked for a fresh certificate.

    It is asked when the certificate is due, and where its age is an estimate only, because the machine was restarted or
    the identity's folder is a copy; but not before the pause since the last attempt is over, whoever made it.
    """
    receipt = identity.receipt()
    due_s = renewal_due_s(identity) if receipt.is_exact() else 0.0
    return max(due_s, receipt.until_next_s(attempt_every_s(identity)))


def renewed_if_due(identity: Identity) -> Identity:
    """Return an identity with a fresh certificate, confirmed, if it is due by the server's clock; otherwise as it is.

    Raises:
        as `renew`.
    """
    if attempt_due_s(identity) > 0:
        return identity
    try:
        fresh = get_fresh(identity, only_if_due=True)
    except UsageError as exc:
        _log.warning("%s", exc)
        return identity
    if fresh.certificate != identity.certificate:
        confirm(fresh)
    return fresh


def attempt_every_s(identity: Identity) -> float:
    """Return the seconds between two attempts to renew, at least: ten minutes, less for short validities."""
    return min(_ATTEMPT_S, identity.lifetime_s() / 10)


def _count_from_now(identity: Identity) -> None:
    """Begin the pause since the last attempt again where it is not known how much of it is over."""
    receipt = identity.receipt()
    if receipt.attempted is not None and receipt.attempted.passed_s() is None:
        with contextlib.suppress(OSError):
            receipt.tried().save(identity.folder)


class Renewer:
    """Renews the certificate of a running node, in a separate thread.

    Args:
        identity: the node's.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fedloom-renewer", daemon=True)

    def start(self) -> None:
        """Start renewing the certificate."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        _count_from_now(self.identity)
        while not self._stop.wait(min(_LOOK_EVERY_S, max(_LOOK_AGAIN_S, attempt_due_s(self.identity)))):
            if attempt_due_s(self.identity) > 0:
                continue
            self._attempt()
            if self._stop.wait(attempt_every_s(self.identity)):  # whether or not the attempt could be noted
                return

    def _attempt(self) -> None:
        about, before = {"node": self.identity.name}, self.identity.certificate
        try:
            self.identity = get_fresh(self.identity, only_if_due=True)  # before it ends the one in use
            if self.identity.certificate == before:
                return
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
