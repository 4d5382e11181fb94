"""The server's certificate authority: standard X.509 on P-256 keys, stored in the state folder.

The authority signs three kinds of certificates: the server's, nodes' and users'. A caller trusts the server
because the authority of its join token signed the server's name; the server trusts a caller because the authority
signed its certificate and the registry lists it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fedloom.core import files
from fedloom.core.errors import BadMessage, UsageError
from fedloom.core.identity import BACKDATE, SERVER_NAME, key_pem, pem

MEMBER_DAYS = 30.0
"""Days a node's or a user's certificate is valid; it is renewed after two thirds of them."""
_AUTHORITY_DAYS, _SERVER_DAYS, _SERVER_RENEW_DAYS = 3650.0, 90.0, 30.0
_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
"""When certificates of servers and authorities become valid: callers check them by clocks that may be wrong."""
"""Certificates begin a day ago, for devices whose clock is behind."""
MAX_CSR_BYTES = 8 << 10


class Authority:
    """A key that signs, and its certificate.

    Args:
        key: of the authority.
        certificate: of the authority, signed by itself.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self._certificate = key, certificate
        self._server: tuple[bytes, x509.Certificate] | None = None

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open the authority in a folder, created the first time (its key readable by the owner only)."""
        key_file, certificate_file = folder / "authority-key.pem", folder / "authority.pem"
        if not key_file.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _authority_certificate(key)
            files.write(certificate_file, pem(certificate), private=True)
            files.write(key_file, key_pem(key), private=True)
        try:
            loaded = serialization.load_pem_private_key(key_file.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except (OSError, ValueError, TypeError) as exc:
            raise UsageError(
                f"{folder}: cannot be read as a certificate authority: {exc}. Restore its two files, or move the "
                "folder away to have a new authority created, after which every node has to join again"
            ) from exc
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise UsageError(f"{key_file}: expected a P-256 key, got a {type(loaded).__name__}")
        return cls(loaded, certificate)

    @property
    def certificate_pem(self) -> bytes:
        """Return the authority's certificate; public."""
        return pem(self._certificate)

    @property
    def sha256(self) -> str:
        """Return the digest of the authority's certificate, as in join tokens."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def server_pair(self) -> tuple[bytes, bytes]:
        """Return the server's key and certificate (PEM), renewed when less than a third of its time is left."""
        if self._server is None or _days_left(self._server[1]) < _SERVER_RENEW_DAYS:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(
                key.public_key(),
                SERVER_NAME,
                x509.DNSName(SERVER_NAME),
                ExtendedKeyUsageOID.SERVER_AUTH,
                timedelta(days=_SERVER_DAYS),
            )
            self._server = key_pem(key), certificate
        return self._server[0], pem(self._server[1])

    def sign_request(self, csr_pem: str, name: str, role: str, lifetime_s: float) -> x509.Certificate:
        """Return a certificate for the key of a request; the name and everything else in the request are ignored.

        Raises:
            BadMessage: not a valid request for a P-256 key.
        """
        data = csr_pem.encode()
        if len(data) > MAX_CSR_BYTES:
            raise BadMessage(f"a certificate request has at most {MAX_CSR_BYTES} bytes, got {len(data)}")
        try:
            request = x509.load_pem_x509_csr(data)
            public = p256_key(request.public_key())
            # The kind of key first: the caller decides how expensive another kind's signature is to check.
            sound = public is not None and request.is_signature_valid
        except Exception as exc:
            raise BadMessage(f"expected a certificate request (PKCS #10, PEM): {exc}") from exc
        if public is None or not sound:
            raise BadMessage("expected a certificate request for a P-256 key, signed by that key")
        return self.sign_key(public, name, role, lifetime_s)

    def sign_key(self, public: ec.EllipticCurvePublicKey, name: str, role: str, lifetime_s: float) -> x509.Certificate:
        """Return a member's certificate."""
        uri = x509.UniformResourceIdentifier(f"fedloom:{role}/{name}")
        return self._sign(public, name, uri, ExtendedKeyUsageOID.CLIENT_AUTH, timedelta(seconds=lifetime_s))

    def _sign(
        self,
        public: ec.EllipticCurvePublicKey,
        name: str,
        also: x509.GeneralName,
        use: ObjectIdentifier,
        lifetime: timedelta,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_ALWAYS if use == ExtendedKeyUsageOID.SERVER_AUTH else now - BACKDATE)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName([also]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def p256_key(key: object) -> ec.EllipticCurvePublicKey | None:
    """Return a public key if it is on the curve P-256, otherwise None."""
    return key if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" else None


def _authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now, name = datetime.now(UTC), _named(f"fedloom authority {os.urandom(4).hex()}")
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_ALWAYS)
        .not_valid_after(now + timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _days_left(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)
