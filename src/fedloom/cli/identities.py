"""The identity a command shows to a server: its option, and where it is found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedloom.core.errors import ServerUnreachable, Unauthenticated

if TYPE_CHECKING:
    from fedloom.client.admin import AdminClient
    from fedloom.core.identity import Identity


IdentityFolder = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="DIR",
        envvar="FEDLOOM_IDENTITY",
        help="Folder of the identity to use: yours from `fedloom join`, or `admin` in a server's state "
        "folder. By default the one in ~/.config/fedloom, otherwise fedloom-server/admin.",
    ),
]
Proxy = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="The HTTP proxy to the server, http://[USER:PASSWORD@]HOST:PORT, or none; by default the one of `join`, "
        "otherwise that of grpc_proxy, https_proxy or http_proxy, but for what no_grpc_proxy or no_proxy lists.",
    ),
]

NodeConfig = Annotated[
    list[str],
    typer.Option(
        metavar="KEY=VALUE",
        help="A value of this node's own for hosted apps (Flower's context.node_config), or a .toml file of them. "
        "Repeatable. `join` writes them to node-config.toml in the identity's folder; `client` adds to those.",
    ),
]


def find_identity(folder: Path | None) -> Identity:
    """Return the identity in a folder, or the first default one; its certificate is renewed if that is due."""
    from fedloom.client.enroll import renewed_if_due
    from fedloom.core.identity import Identity, default_folder

    places = [folder] if folder is not None else [default_folder("user"), Path("fedloom-server") / "admin"]
    place = next((each for each in places if (each / "server.json").exists()), places[0])
    identity = Identity.load(place)
    try:
        return renewed_if_due(identity)
    except (ServerUnreachable, Unauthenticated) as exc:
        if ended := identity.ended():
            raise Unauthenticated(f"{exc}. And {ended}") from exc
        raise


def admin_client(folder: Path | None) -> AdminClient:
    """Connect as an administrator, with the identity of a folder or a default one."""
    from fedloom.client.admin import AdminClient

    return AdminClient(find_identity(folder))
