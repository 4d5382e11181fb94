"""A server with members: settings of their enrolment, the registry and the authority, and the first administrator."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedloom.core.addresses import DeviceAddress, with_port
from fedloom.core.clock import SYSTEM_CLOCK, Clock
from fedloom.core.identity import Identity, key_pem, make_key, pem
from fedloom.server.access.authority import MEMBER_DAYS, Authority
from fedloom.server.access.members import Registry

if TYPE_CHECKING:
    from fedloom.server.access.enroll_service import Security

ADMINISTRATOR = "server-admin"
"""Name of the administrator whose identity is in the state folder."""
_ADMINISTRATOR_S = 10 * 365 * 86400.0
_ANYWHERE = ("0.0.0.0", "[::]", "::")


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """Settings of enrolment."""

    enroll_port: int
    """Port of the Enroll service; 0 takes a free one."""
    address: DeviceAddress = field(default_factory=DeviceAddress)
    """How devices reach the server, for join tokens; by default `host` or the machine's name, and the ports here."""
    certificate_days: float = MEMBER_DAYS
    """How long members' certificates are valid."""
    allowed: tuple[str, ...] = ()
    """Code and paths that users' runs may use besides installed plug-ins."""


@contextlib.contextmanager
def open_security(state: Path, host: str, members: Membership, clock: Clock = SYSTEM_CLOCK) -> Iterator[Security]:
    """Open the registry and the authority of a state folder."""
    from fedloom.server.access.audit import Audit
    from fedloom.server.access.enroll_service import Security

    authority = Authority.open(state / "authority")
    reached = platform.node() if host in _ANYWHERE else host
    with contextlib.closing(Registry(state / "fedloom.sqlite", clock.time)) as registry:
        yield Security(
            registry=registry,
            authority=authority,
            address=replace(members.address, host=members.address.host or reached),
            lifetime_s=members.certificate_days * 86400,
            allowed=members.allowed,
            audit=Audit(state, clock.time),
        )


def enroll_administrator(security: Security, folder: Path, host: str, port: int) -> None:
    """Write the administrator's identity to the state folder: a fresh key and certificate at every start."""
    key = make_key()
    certificate = security.authority.sign_key(key.public_key(), ADMINISTRATOR, "admin", _ADMINISTRATOR_S)
    security.registry.enroll(ADMINISTRATOR, "admin", certificate)
    Identity(
        folder=folder,
        name=ADMINISTRATOR,
        role="admin",
        address=with_port("127.0.0.1" if host in _ANYWHERE else host, port),
        key=key_pem(key),
        certificate=pem(certificate),
        authority=security.authority.certificate_pem,
    ).save()
