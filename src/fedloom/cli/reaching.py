"""Options by which a command reaches a server, and the connection they lead to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fedloom.cli.identities import find_identity
from fedloom.core.errors import UsageError

T = TypeVar("T")

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        envvar="FEDLOOM_SERVER",
        help="Address of a server started with --insecure. A joined server's address is in the identity.",
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id; see `fedloom runs`.", show_default=False)]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        envvar="FEDLOOM_TOKEN_FILE",
        help="File whose only line is the shared token of a server started with --insecure. By default the "
        "server creates one, and this user's commands on its machine find it.",
    ),
]


def reach(client: Callable[..., T], server: str | None, identity: Path | None, token_file: Path | None) -> T:
    """Connect to the joined server, or to one without members.

    Args:
        client: makes the connection, of an address and a `token` or an `identity`.
        server, identity, token_file: the options.
    """
    if server is not None:
        return client(server, token=read_token(token_file, server))
    if token_file is not None:
        raise UsageError("--token-file needs --server; a server that was joined knows its members by certificate")
    known = find_identity(identity)
    return client(known.address, identity=known)


def read_token(file: Path | None, server: str = "") -> str:
    """Read the secret in a file; without one, that of this user's server on this machine, otherwise empty."""
    from fedloom.core import local_token

    if file is None:
        return local_token.find(server)
    token = file.read_text(encoding="utf-8").strip()
    if not token or len(token.split()) > 1:
        raise UsageError(f"--token-file {str(file)!r}: expected one word, the token")
    return token
