"""The command that reads a server's audit log."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from fedloom.cli.experiments import Json
from fedloom.cli.identities import IdentityFolder, find_identity
from fedloom.cli.terminal import output, print_line, print_table
from fedloom.core.errors import UsageError

_SHOWN = ("time", "event", "who", "from")


def audit(
    last: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Number of latest lines to show.")] = 50,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Read the log from this server's state folder instead of the server."),
    ] = None,
    identity: IdentityFolder = None,
    json: Json = False,
) -> None:
    """Show a server's audit log: who joined, submitted, stopped, fetched, revoked, and from where."""
    lines = _of_folder(state, last) if state is not None else _of_server(identity, last)
    if json:
        for line in lines:
            print_line(line)
        return
    rows = []
    for entry in map(json_text.loads, lines):
        more = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in _SHOWN)
        rows.append((*(str(entry.get(key, "")) for key in _SHOWN), more))
    print_table(output(), (*_SHOWN, "about"), rows)


def _of_folder(state: Path, last: int) -> list[str]:
    from fedloom.server.access.audit import FILE, last_lines

    if not (state / FILE).exists():
        raise UsageError(f"no audit log in {state}; expected a server's --state folder with a file {FILE}")
    return last_lines(state / FILE, last)


def _of_server(identity: Path | None, last: int) -> list[str]:
    from fedloom.client.admin import AdminClient

    with AdminClient(find_identity(identity)) as admin:
        return list(admin.audit(last))
