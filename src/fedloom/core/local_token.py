"""The token of a server without members, found by its own user's programs on the same machine by the port.

A server started without a token creates one in its state folder, and a copy in a folder programs of that user read:
`$XDG_STATE_HOME/fedloom/tokens/PORT` (`~/.local/state` if the variable is not set), readable by that user only.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from fedloom.core import files
from fedloom.core.errors import UsageError

FILE = "token"


def new_token() -> str:
    """Return a secret for a server's callers."""
    return secrets.token_urlsafe(24)


def own_token(state: Path) -> str:
    """Return the token of a state folder, created the first time.

    Raises:
        UsageError: other users can read the file, or it contains no token.
    """
    file = state / FILE
    if not file.exists():
        files.write(file, new_token() + "\n", private=True)
    if not _is_private(file):
        raise UsageError(f"{file} is readable by other users; remove it and restart the server to create a new token")
    token = file.read_text(encoding="utf-8").strip()
    if len(token.split()) != 1:
        raise UsageError(f"{file}: expected one word, the token; remove the file to create a new one")
    return token


def publish(port: int, token: str) -> Path | None:
    """Publish a token for this user's programs; return None if it cannot be written."""
    file = _place(port)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write(file, token + "\n", private=True)
    except OSError:
        return None
    return file


def find(server: str) -> str:
    """Return the token this user's server on this machine has published; empty if there is none.

    Args:
        server: `host:port`; another host gets no token.
    """
    host, _, port = server.rpartition(":")
    if not port.isdecimal():
        return ""
    file = _place(int(port))
    if not file.is_file() or not _is_private(file) or not _is_here(host.strip("[]")):
        return ""
    return file.read_text(encoding="utf-8").strip()


def _place(port: int) -> Path:
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return root / "fedloom" / "tokens" / str(port)


def _is_private(file: Path) -> bool:
    state = file.stat()
    return state.st_uid == os.geteuid() and not state.st_mode & 0o077


def _is_here(host: str) -> bool:
    """Return whether a name or address is this machine's: a socket can be bound to it."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
    except OSError:
        return False
    return bool(found)
