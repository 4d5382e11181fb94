"""Addresses as people write them: host names, IPv4, and IPv6 with and without brackets."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from fedloom.core.errors import UsageError

FORM = "HOST, or HOST:PORT,PORT (for members, and for joining); IPv6 with ports in brackets: [::1]:443,444"
"""What an address for devices looks like."""


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
        """Read an address.

        Raises:
            UsageError: it has one port, a port out of range, or IPv6 with ports but without brackets.
        """
        if not text or is_ipv6(text):
            return cls(host=text)
        host, ports = _split(text)
        if not host or (":" in host and not is_ipv6(host)) or "/" in host or " " in host:
            raise UsageError(f"address {text!r}: no host name or IP address; expected {FORM}")
        if ports is None:
            return cls(host=host)
        numbers = [int(port) for port in ports.split(",") if port.isascii() and port.isdecimal()]
        if len(numbers) != 2 or ports.count(",") != 1 or not all(0 < number < 65536 for number in numbers):
            raise UsageError(
                f"address {text!r}: {ports!r} in place of two ports, the one that members call and the one for "
                f"joining, as devices see them; expected {FORM}"
            )
        return cls(host=host, member_port=numbers[0], join_port=numbers[1])


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
