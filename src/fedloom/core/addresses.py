"""Addresses as people write them: host names, IPv4, and IPv6 with and without brackets."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass

from fedloom.core.errors import UsageError

FORM = "HOST, or HOST:PORT,PORT (for members, and for joining); IPv6 with ports in brackets: [::1]:443,444"
"""What an address for devices looks like."""
_NAME_CHARACTERS = 253
"""Limit of a host name."""
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
"""A part of a host name between dots; underscores occur in names of containers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceAddress:
    """How devices reach a server: through a forwarded port or a load balancer, its ports differ from those here."""

    host: str = ""
    """Host name or address, IPv6 without brackets; empty for that the server listens on."""
    member_port: int | None = None
    """Port of the services that members call; None for that the server listens on."""
    join_port: int | None = None
    """Port for joining, likewise; both are given, or neither."""

    @classmethod
    def parse(cls, text: str) -> DeviceAddress:
        """Parse an address.

        Raises:
            UsageError: it has one port, one port twice, a port out of range, IPv6 with ports but without brackets, or a
                host that devices cannot connect to.
        """
        if not text:
            return cls()
        host, ports = (text, None) if is_ipv6(text) else _split(text)
        if wrong := _wrong_with(host):
            raise UsageError(f"address {text!r}: {wrong}; expected {FORM}")
        if ports is None:
            return cls(host=host)
        numbers = [int(port) for port in ports.split(",") if port.isascii() and port.isdecimal()]
        if len(numbers) != 2 or ports.count(",") != 1 or not all(0 < number < 65536 for number in numbers):
            raise UsageError(
                f"address {text!r}: {ports!r} in place of two ports, the one that members call and the one for "
                f"joining, as devices see them; expected {FORM}"
            )
        if numbers[0] == numbers[1]:
            raise UsageError(
                f"address {text!r}: port {numbers[0]} twice, but members and joining devices call different services; "
                f"forward two ports; expected {FORM}"
            )
        return cls(host=host, member_port=numbers[0], join_port=numbers[1])


def _wrong_with(host: str) -> str:
    """Return why devices cannot connect to a host by this name or address; empty if they might."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _wrong_with_name(host)
    if address.is_unspecified or address.is_multicast:
        return f"{host} is no machine's address: it may be listened on (--host), not connected to"
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return f"{host} names a network interface of this machine (%{address.scope_id}), which devices do not have"
    return ""


def _wrong_with_name(host: str) -> str:
    if not host.isascii():
        with contextlib.suppress(UnicodeError):
            return f"the name has characters beyond ASCII; write it as {host.encode('idna').decode()}"
    bare = host.removesuffix(".")
    labels = bare.split(".")
    if len(bare) > _NAME_CHARACTERS or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        return "no host name or IP address"
    return ""


def _split(text: str) -> tuple[str, str | None]:
    """Return the host without brackets, and the text in place of ports."""
    if text.startswith("["):
        host, closing, rest = text[1:].partition("]")
        well_formed = is_ipv6(host) and closing and rest[:1] in ("", ":")
        return (host if well_formed else ""), rest[1:] if rest else None
    host, colon, ports = text.partition(":")
    return host, ports if colon else None


def is_ipv6(text: str) -> bool:
    """Return whether a text is an IPv6 address without brackets."""
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def with_port(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 host in brackets."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if is_ipv6(bare) else f"{host}:{port}"
