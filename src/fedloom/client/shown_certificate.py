"""The certificate that a server presents, looked at without trusting it."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime

from cryptography import x509

from fedloom.client.proxy import open_tunnel, proxy_for
from fedloom.core.errors import FedloomError
from fedloom.core.identity import Identity

_TIME = "%Y-%m-%d %H:%M:%S"
_LOOK_S = 5.0


def shown_certificate(address: str, proxy: str, timeout_s: float) -> bytes:
    """Return the certificate that a server presents, PEM, not verified.

    Args:
        address: `host:port`.
        proxy: URL of the HTTP proxy to it; empty for none.
        timeout_s: seconds for the connection.

    Raises:
        OSError, ValueError: there is none.
    """
    host, _, port = address.rpartition(":")
    if not proxy:
        return ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=timeout_s).encode()
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    with (
        contextlib.closing(open_tunnel(proxy, address, timeout_s)) as tunnel,
        unverified.wrap_socket(tunnel) as connection,
    ):
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"").encode()


def clock_trouble(identity: Identity) -> str:
    """Return a sentence about clocks, if they are why no connection to an identity's server can be made; or nothing."""
    try:
        proxy = proxy_for(identity.address, identity.proxy)
        certificate = x509.load_pem_x509_certificate(shown_certificate(identity.address, proxy, _LOOK_S))
    except (OSError, ValueError, FedloomError):
        return ""
    now, until = datetime.now(UTC), certificate.not_valid_after_utc
    if now <= until:
        return ""
    return (
        f"the certificate of the server at {identity.address} is valid until {until:{_TIME}} UTC, and by this "
        f"machine's clock it is {now:{_TIME}} UTC: set this machine's clock, or, if it is right, restart the server"
    )
