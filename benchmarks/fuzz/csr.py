"""Certificate requests nobody should send: broken ones, and well-formed ones that ask for what is not theirs."""

from __future__ import annotations

import base64
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from benchmarks.fuzz.bend import mutate
from benchmarks.fuzz.samples import HONEST
from fedloom.core.identity import SERVER_NAME, certificate_request, key_pem, make_key, pem

_POINT = 65
"""Bytes of a P-256 point, uncompressed."""


def sound() -> str:
    """A request as devices make it, for a fresh key."""
    return certificate_request(make_key())


def is_sound(csr_pem: str) -> bool:
    """Whether a request is one for a P-256 key, signed by it and of a length the server takes."""
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        public = request.public_key()
        fits = isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name == "secp256r1"
        return fits and request.is_signature_valid and len(csr_pem.encode()) <= 8192
    except Exception:
        return False


def strange(authority: x509.Certificate, rng: np.random.Generator) -> str:
    """One of the kinds below."""
    kinds: Sequence[Callable[[], str]] = (
        lambda: _named(rng),
        lambda: _extended(rng),
        lambda: _foreign(int(rng.integers(len(_FOREIGN)))),
        lambda: _with_point(authority, rng),
        lambda: _wrong_text(authority, rng),
        lambda: _pem(mutate(_der(sound()), [_der(_foreign(0))], rng)),
    )
    return kinds[int(rng.integers(len(kinds)))]()


def _named(rng: np.random.Generator) -> str:
    """A subject that is somebody else's, huge, empty, or no name at all."""
    names = (HONEST, "server-admin", SERVER_NAME, "x" * 5000, "honest\0.example", "é" * 100, "")
    subjects = [
        [],
        *([_common(name)] for name in names),
        [_common(HONEST), _common("server-admin")],
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"{number:060}") for number in range(60)],
    ]
    subject = x509.Name(subjects[int(rng.integers(len(subjects)))])
    return _text(x509.CertificateSigningRequestBuilder().subject_name(subject).sign(make_key(), hashes.SHA256()))


def _common(name: str) -> x509.NameAttribute[str]:
    """A common name of any length, which the library would only warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)


def _extended(rng: np.random.Generator) -> str:
    """Extensions that ask for an authority's rights, the server's, or somebody else's name."""
    others = [
        x509.DNSName(SERVER_NAME),
        x509.UniformResourceIdentifier("fedloom:admin/server-admin"),
        x509.UniformResourceIdentifier(f"fedloom:node/{HONEST}"),
        x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HONEST)])),
    ]
    signs = x509.KeyUsage(True, True, True, True, True, True, True, True, True)
    asked: Sequence[x509.ExtensionType] = (
        x509.BasicConstraints(ca=True, path_length=None),
        signs,
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        x509.SubjectAlternativeName(others),
        x509.NameConstraints(permitted_subtrees=[x509.DNSName("")], excluded_subtrees=None),
        x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), rng.bytes(int(rng.choice([0, 10, 3000])))),
        x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.17"), b"\xff\x00"),  # subjectAltName, unreadable
        x509.OCSPNoCheck(),
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    seen = set()
    for at in rng.permutation(len(asked))[: int(rng.integers(1, 5))]:
        if asked[at].oid not in seen:
            builder = builder.add_extension(asked[at], critical=bool(rng.random() < 0.5))
        seen.add(asked[at].oid)
    if rng.random() < 0.3:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"p" * int(rng.choice([1, 200])))
    return _text(builder.sign(make_key(), hashes.SHA512()))


_FOREIGN: Sequence[Callable[[], Any]] = (
    ed25519.Ed25519PrivateKey.generate,
    ed448.Ed448PrivateKey.generate,
    lambda: rsa.generate_private_key(65537, 1024),
    lambda: rsa.generate_private_key(3, 2048),
    lambda: rsa.generate_private_key(65537, 4096),
    lambda: dsa.generate_private_key(1024),
    lambda: ec.generate_private_key(ec.SECP384R1()),
    lambda: ec.generate_private_key(ec.SECP521R1()),
    lambda: ec.generate_private_key(ec.SECP256K1()),
    lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
)


@functools.cache
def _foreign(kind: int) -> str:
    """A sound request for a key that is not P-256; made once, for large keys take long."""
    key = _FOREIGN[kind]()
    bare = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return _text(builder.sign(key, None if bare else hashes.SHA256()))


def _with_point(authority: x509.Certificate, rng: np.random.Generator) -> str:
    """A key exchanged after signing (the authority's, another, one off the curve, zeros), or a bad signature."""
    key = make_key()
    der, own = _der(certificate_request(key)), _point(key.public_key())
    theirs = authority.public_key()
    assert isinstance(theirs, ec.EllipticCurvePublicKey)
    match int(rng.integers(5)):
        case 0:
            return _pem(der.replace(own, _point(theirs)))
        case 1:
            return _pem(der.replace(own, _point(make_key().public_key())))
        case 2:
            return _pem(der.replace(own, own[:-1] + bytes([own[-1] ^ 1])))
        case 3:
            return _pem(der.replace(own, b"\x04" + bytes(_POINT - 1)))
        case _:
            return _pem(der[:-1] + bytes([der[-1] ^ 1]))


def _wrong_text(authority: x509.Certificate, rng: np.random.Generator) -> str:
    """Text around, inside and in place of a request."""
    text = sound()
    texts = (
        "",
        "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
        text + sound(),
        text.replace("\n", "\r\n"),
        "a letter first\n" + text,
        text.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        text.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
        pem(authority).decode(),
        key_pem(make_key()).decode(),
        text[: len(text) // 2],
        text.replace("A", "é"),
        text + "\0" * 100,
        text + " " * 9000,
        text + "é" * 5000,
        text.replace("-----BEGIN", "-----BEGIN" * 500),
        _pem(_der(text) + b"trailing"),
        _pem(b"\x30\x84\xff\xff\xff\xff" + _der(text)),
        _pem(b"\x30\x80" * 2000),
    )
    return texts[int(rng.integers(len(texts)))]


def _der(csr_pem: str) -> bytes:
    return x509.load_pem_x509_csr(csr_pem.encode()).public_bytes(serialization.Encoding.DER)


def _pem(der: bytes) -> str:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


def _text(request: x509.CertificateSigningRequest) -> str:
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _point(public: ec.EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
