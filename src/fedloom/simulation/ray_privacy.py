"""Keeps a Ray that fedloom starts to its own user: a random token for all who call it, a folder nobody else can enter.

Ray's processes listen on every interface, and whoever reaches them may run code as their user, unless calls have to
show a token. Ray reads that setting once, when it is imported; so the variables are set before.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Ray's variables: whether calls must show a token, the token, a file that has it."""


def token_variables(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the variables by which Ray asks all callers for a token, a random one unless the user has set one.

    A cluster that asks for no token can be joined all the same; one that does needs its own in these variables.

    Args:
        environment: the process's variables.
        home: of the user, where Ray looks for `.ray/auth_token` once token mode is on.
    """
    chosen = environment.get(MODE, "").strip().lower() not in ("", "disabled")
    has_own = bool(environment.get(TOKEN) or environment.get(TOKEN_FILE))
    has_own = has_own or (chosen and (home / ".ray" / "auth_token").is_file())
    mode = {} if chosen else {MODE: "token"}
    return mode if has_own else {**mode, TOKEN: secrets.token_hex(32)}


def make_folder(environment: Mapping[str, str]) -> Path:
    """Make a folder for Ray's files, sockets and logs that only this user can enter.

    Ray opens its own folder to everybody, so that is one below; `remove_folder` takes what this returns.

    Raises:
        OSError: it cannot be made where RAY_TMPDIR, else TMPDIR, else /tmp says.
    """
    root = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    return Path(tempfile.mkdtemp(prefix="ray-", dir=root)) / "r"


def remove_folder(folder: Path) -> None:
    """Remove what `make_folder` made."""
    shutil.rmtree(folder.parent, ignore_errors=True)
