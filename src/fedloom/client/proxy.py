"""An HTTP proxy between a member and its server: which one, for which addresses, and a connection through it.

gRPC opens a tunnel through the proxy (CONNECT), in which a member's TLS runs from end to end, so that the proxy sees
no content.
The environment variables are those that gRPC reads, in its order.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import urllib.parse

from fedloom.core.errors import ServerUnreachable, UsageError

NO_PROXY = "none"
"""As a proxy's URL: connect directly, whatever the environment says."""
_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXEMPT = ("no_grpc_proxy", "no_proxy")
_REPLY_BYTES = 16 << 10
"""Limit of a proxy's reply to CONNECT."""


def checked(url: str, name: str = "proxy") -> str:
    """Return a proxy's URL.

    Args:
        url: the URL.
        name: of the setting or variable, for the message.

    Raises:
        UsageError: it is not `http://[USER:PASSWORD@]HOST:PORT`, nor `none`, nor empty.
    """
    if url in ("", NO_PROXY):
        return url
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme == "http" and bool(parts.hostname) and bool(parts.port)
        valid = valid and parts.path in ("", "/") and not parts.query and url.isprintable() and " " not in url
    except ValueError:
        valid = False
    if not valid:
        shown = url if "@" not in url else f"…@{url.rpartition('@')[2]}"  # what is before it may be a password
        raise UsageError(
            f"{name}: expected http://HOST:PORT, with USER:PASSWORD@ before the host if it requires them, or "
            f"{NO_PROXY!r}; got {shown!r}"
        )
    return url


def proxy_for(address: str, given: str) -> str:
    """Return the URL of the proxy for an address, empty for a direct connection.

    Args:
        address: `host:port`.
        given: the proxy that was set; empty takes the environment's (none for this machine's own addresses).

    Raises:
        UsageError: the URL is not one of a proxy.
    """
    host = address.rpartition(":")[0].strip("[]")
    if given == NO_PROXY or _is_exempt(host) or (not given and _is_own(host)):
        return ""
    if given:
        return checked(given)
    name = next((name for name in _VARIABLES if os.environ.get(name)), "")
    return checked(os.environ[name].strip(), f"environment variable {name}") if name else ""


def open_tunnel(proxy: str, address: str, timeout_s: float) -> socket.socket:
    """Connect to an address through a proxy.

    Raises:
        ServerUnreachable: the proxy does not respond, or refuses.
    """
    parts = urllib.parse.urlsplit(proxy)
    where = f"the proxy at {parts.hostname}:{parts.port}"
    try:
        made = socket.create_connection((parts.hostname, parts.port), timeout_s)
    except OSError as exc:
        raise ServerUnreachable(f"{where} cannot be reached: {exc}") from exc
    try:
        made.sendall(_request(parts, address))
        reply = b""
        while b"\r\n\r\n" not in reply and len(reply) < _REPLY_BYTES and (more := made.recv(1)):
            reply += more  # one at a time: what follows belongs to the server
        status = reply.split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ")[1:2] != ["200"]:
            raise ServerUnreachable(f"{where} does not connect to {address}: it says {status[:200]!r}")
    except BaseException as exc:
        made.close()
        if isinstance(exc, OSError):
            raise ServerUnreachable(f"{where} does not connect to {address}: {exc}") from exc
        raise
    return made


def _request(parts: urllib.parse.SplitResult, address: str) -> bytes:
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def _is_exempt(host: str) -> bool:
    """Return whether the environment exempts a host: by the end of its name, or by a network it is in."""
    listed = next((value for name in _EXEMPT if (value := os.environ.get(name))), "")
    return any(_matches(host, entry.strip()) for entry in listed.split(",") if entry.strip())


def _matches(host: str, entry: str) -> bool:
    if entry == "*" or host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _is_own(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
