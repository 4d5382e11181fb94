"""Resolves which Ray a run uses: one started here, or a running cluster, and which setting named it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from fedloom.core.errors import ConfigError

LOCAL = "local"
"""Ray's name for a new instance on this machine, whether or not others run here."""
AUTO = "auto"
"""Ray's name for the cluster that runs on this machine."""
VARIABLE = "RAY_ADDRESS"
_SETTING = "runtime.ray_address"
_KNOCK_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RayAddress:
    """The address Ray is started or joined with."""

    address: str
    """`local`, `auto`, `HOST:PORT` or `ray://HOST:PORT`."""
    source: str
    """Setting or environment variable that named it; empty if none did."""

    @property
    def is_local(self) -> bool:
        """Return whether a new Ray is started on this machine."""
        return self.address == LOCAL

    @property
    def given_by(self) -> str:
        """Return the source as a phrase for messages."""
        if self.source == VARIABLE:
            return f"the environment variable {VARIABLE}"
        return f"--ray-address or {self.source}" if self.source else "default"


def ray_address(setting: str | None, environment: Mapping[str, str]) -> RayAddress:
    """Resolve the address: the setting, then RAY_ADDRESS, then `local`. `auto` means RAY_ADDRESS if that is set.

    Args:
        setting: `runtime.ray_address`.
        environment: the process's environment variables.

    Raises:
        ConfigError: the address is none that Ray understands.
    """
    variable = environment.get(VARIABLE, "").strip()
    if setting and setting != AUTO:
        found = RayAddress(address=setting, source=_SETTING)
    elif variable:
        found = RayAddress(address=variable, source=VARIABLE)
    else:
        found = RayAddress(address=AUTO, source=_SETTING) if setting else RayAddress(address=LOCAL, source="")
    if found.address not in (LOCAL, AUTO) and _host_and_port(found.address.removeprefix("ray://")) is None:
        raise ConfigError(
            f"{found.source}: expected the address of a Ray cluster (HOST:PORT, ray://HOST:PORT, `auto` or `local`), "
            f"got {found.address!r}, given by {found.given_by}"
        )
    return found


def knock(address: str) -> None:
    """Connect to HOST:PORT once, because Ray itself retries for minutes.

    Raises:
        OSError: nothing listens there.
    """
    if (place := _host_and_port(address)) is not None:
        socket.create_connection(place, timeout=_KNOCK_S).close()


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)
