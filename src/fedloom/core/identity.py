"""An identity: what a device or user has after joining a server. Keys and certificates are standard X.509 in PEM.

A folder, readable by its owner only:

    key.pem           made here, never sent anywhere
    certificate.pem   signed by the server's authority; both are replaced when renewed
    authority.pem     the trusted authority: it must have signed the server's certificate
    server.json       the server's address and the proxy to it, and the name and role it gave
    receipt.json      when the certificate came and was renewed (`core/receipt.py`); not needed
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedloom.core import files
from fedloom.core.errors import UsageError
from fedloom.core.receipt import Receipt

SERVER_NAME = "fedloom-server"
"""The name in every server certificate: callers check which authority signed it, not the server's address."""
ROLES = ("node", "user", "admin")
"""Nodes train; users submit, watch and stop their own runs; admins may do everything users may, and manage members."""
_TOKEN_PREFIX = "fedloom1."
_RENEWED = "renewed.pem"
"""A key and its certificate while they are written to `key.pem` and `certificate.pem`, which takes two steps."""
BACKDATE = timedelta(days=1)
"""How much earlier than their issue members' certificates become valid."""
RENEW_SHARE = 1 / 3
"""A certificate is due for renewal when this fraction of its validity is left."""
_TIME = "%Y-%m-%d %H:%M:%S"
_READ_AGAIN_S = 0.05
_READS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinToken:
    """Join token: the server's address, its authority's fingerprint, and a secret."""

    address: str
    """`host:port` of the Enroll service."""
    authority_sha256: str
    """SHA-256 of the authority's certificate (DER), hexadecimal."""
    secret: str

    def encode(self) -> str:
        """Return the token as one word that can be copied."""
        body = json.dumps([self.address, self.authority_sha256, self.secret], separators=(",", ":"))
        return _TOKEN_PREFIX + base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> JoinToken:
        """Parse a join token. Raises `UsageError` for any other text."""
        body = text.strip().removeprefix(_TOKEN_PREFIX)
        try:
            address, sha256, secret = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            if not all(isinstance(part, str) and part for part in (address, sha256, secret)) or ":" not in address:
                raise ValueError("its parts are not as expected")
        except ValueError as exc:
            raise UsageError(
                f"expected a join token, as `fedloom token create` prints it ({_TOKEN_PREFIX}…), got {text[:40]!r}"
            ) from exc
        return cls(address=address, authority_sha256=sha256, secret=secret)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A key, its certificate, and the server they are for."""

    folder: Path
    name: str
    role: str
    address: str
    """`host:port` of the server."""
    key: bytes
    certificate: bytes
    authority: bytes
    proxy: str = ""
    """URL of the HTTP proxy to the server; empty takes the environment's, `none` is none."""

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Read an identity.

        Raises:
            UsageError: there is none in the folder, or others can read its key.
        """
        try:
            server = json.loads((folder / "server.json").read_text(encoding="utf-8"))
            key, certificate = _read_pair(folder)
            return cls(
                folder=folder,
                name=server["name"],
                role=server["role"],
                address=server["address"],
                key=key,
                certificate=certificate,
                authority=(folder / "authority.pem").read_bytes(),
                proxy=str(server.get("proxy", "")),
            )
        except FileNotFoundError as exc:
            raise UsageError(
                f"no identity in {folder} ({exc.filename} is missing). Join a server first: fedloom join - <TOKEN-FILE"
            ) from exc
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{folder}: cannot be read as an identity: {exc!r}. Join again with a new token") from exc

    def save(self, place: str = "") -> None:
        """Write the folder; the file that completes it is written last.

        Args:
            place: the word for the folder that the server was given; empty makes one.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / _RENEWED).unlink(missing_ok=True)
        files.write(self.folder / "key.pem", self.key, private=True)
        files.write(self.folder / "authority.pem", self.authority, private=True)
        files.write(self.folder / "certificate.pem", self.certificate, private=True)
        reported = {"address": self.address, "name": self.name, "role": self.role}
        if self.proxy:
            reported["proxy"] = self.proxy
        receipt = self.receipt().got(self.certificate, self.lifetime_s())
        replace(receipt, place=place or receipt.place).save(self.folder)
        files.write(self.folder / "server.json", json.dumps(reported, indent=2).encode() + b"\n", private=True)

    def save_pair(self) -> None:
        """Write a fresh key and its certificate, received now; readers get both or neither, also after a crash."""
        pair = self.folder / _RENEWED
        files.write(pair, self.key.rstrip() + b"\n" + self.certificate, private=True)
        files.write(self.folder / "key.pem", self.key, private=True)
        files.write(self.folder / "certificate.pem", self.certificate, private=True)
        pair.unlink()
        self.receipt().got(self.certificate, self.lifetime_s()).save(self.folder)

    def receipt(self) -> Receipt:
        """Return what the folder says about the certificate's age."""
        return Receipt.load(self.folder, self.certificate)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the identity so that no other process renews it meanwhile."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def remaining_s(self) -> float:
        """Return the seconds of the certificate's validity that are left, by the time passed here since its receipt.

        The server's clock, which issued it, and this machine's need not agree. None are left where this machine's
        clocks say nothing of the time that has passed: they were set back, or the folder is a copy of another one.
        """
        return self.receipt().remaining_s()

    def lifetime_s(self) -> float:
        """Return the seconds for which the certificate was issued."""
        certificate = x509.load_pem_x509_certificate(self.certificate)
        return (certificate.not_valid_after_utc - certificate.not_valid_before_utc - BACKDATE).total_seconds()

    def ended(self) -> str:
        """Return a sentence about the certificate's expiry once it has expired; empty before.

        It is an explanation for a connection that fails, and no reason not to try one: the server's clock decides.
        """
        if self.remaining_s() > 0:
            return ""
        certificate, received = x509.load_pem_x509_certificate(self.certificate), self.receipt().received
        known = "is not known" if received is None else f"was {datetime.fromtimestamp(received.wall, UTC):{_TIME}} UTC"
        return (
            f"the certificate of {self.name!r} in {self.folder} seems to have expired: by the clock of the server at "
            f"{self.address} it is valid from {certificate.not_valid_before_utc + BACKDATE:{_TIME}} to "
            f"{certificate.not_valid_after_utc:{_TIME}} UTC; by this machine's clock it is {datetime.now(UTC):{_TIME}} "
            f"UTC, and the time of its receipt {known}. If both clocks are right, join again with a new token"
        )

    def is_newer_than(self, other: Identity) -> bool:
        """Return whether its certificate was issued after another one, by the server's clock."""
        mine, others = (x509.load_pem_x509_certificate(each.certificate) for each in (self, other))
        return mine.not_valid_before_utc > others.not_valid_before_utc


def _read_pair(folder: Path) -> tuple[bytes, bytes]:
    """Read the key and its certificate; both may be replaced meanwhile."""
    for _ in range(_READS):
        renewed = folder / _RENEWED
        if renewed.exists():
            key, begin, certificate = _private_bytes(renewed).partition(b"-----BEGIN CERTIFICATE-----")
            certificate = begin + certificate
        else:
            key = _private_bytes(folder / "key.pem")
            certificate = (folder / "certificate.pem").read_bytes()
        if _belong_together(key, certificate):
            return key, certificate
        time.sleep(_READ_AGAIN_S)
    raise ValueError("key.pem does not match certificate.pem")


def _private_bytes(file: Path) -> bytes:
    mode = file.stat().st_mode & 0o077
    if mode:
        raise UsageError(f"{file} is readable by other users (excess mode {mode:03o}); chmod 600 {file}")
    return file.read_bytes()


def _belong_together(key: bytes, certificate: bytes) -> bool:
    """Return whether a private key matches a certificate, both PEM."""
    public = serialization.load_pem_private_key(key, None).public_key()
    return public == x509.load_pem_x509_certificate(certificate).public_key()


def default_folder(role: str) -> Path:
    """Return the default folder of an identity: `~/.config/fedloom/node` for nodes, `…/user` for people."""
    root = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return root / "fedloom" / ("node" if role == "node" else "user")


def make_key() -> ec.EllipticCurvePrivateKey:
    """Create a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate_request(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a signed request (PKCS #10, PEM) that proves possession of the key; the name in it is ignored."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedloom")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def authority_sha256(certificate_pem: bytes) -> str:
    """Return the digest of a certificate, as in join tokens. Raises `ValueError` for anything else."""
    return x509.load_pem_x509_certificate(certificate_pem).fingerprint(hashes.SHA256()).hex()


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as text, unencrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
