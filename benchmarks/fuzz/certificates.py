"""What a certificate that came back must be: the token's name and role, the request's key, and nothing more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedloom.server.access.authority import MEMBER_DAYS

_EXTENSIONS = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)
_MAY = "digital_signature"
_MAY_NOT = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")


def excess(certificate_pem: str, name: str, role: str, key: Any, authority: x509.Certificate) -> str:
    """What a member's certificate has that its token did not give; empty where there is nothing.

    Args:
        certificate_pem: what came back.
        name, role: what the token gave.
        key: the public key it was asked for.
        authority: who must have signed it.
    """
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    found = {type(extension.value): extension.value for extension in certificate.extensions}
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception as exc:
        return f"not signed by the authority: {exc!r}"
    usage: Any = found.get(x509.KeyUsage)
    longest = datetime.now(UTC) + timedelta(days=MEMBER_DAYS, seconds=1)
    holds = {
        "its subject": [(each.oid, each.value) for each in certificate.subject] == [(NameOID.COMMON_NAME, name)],
        "its key": certificate.public_key() == key != authority.public_key(),
        "its extensions": set(found) == set(_EXTENSIONS),
        "an authority's right": found.get(x509.BasicConstraints) == x509.BasicConstraints(False, None),
        "its usage": usage is not None and getattr(usage, _MAY) and not any(getattr(usage, each) for each in _MAY_NOT),
        "its purpose": found.get(x509.ExtendedKeyUsage) == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        "its other name": found.get(x509.SubjectAlternativeName)
        == x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"fedloom:{role}/{name}")]),
        "its end": certificate.not_valid_after_utc <= longest,
    }
    wrong = [what for what, right in holds.items() if not right]
    return f"certificate of {name!r} ({role}): wrong in {', '.join(wrong)}" if wrong else ""
