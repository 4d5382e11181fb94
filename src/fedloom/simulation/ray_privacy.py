"""Restricts a Ray that fedloom starts to its own user: a random token for all callers, a private folder.

Ray's processes listen on every interface, and anyone who reaches them may run code as their user, unless calls have to
present a token. Ray reads that setting once, when it is imported; so the variables are set before.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Ray's variables: whether calls must present a token, the token, a file that has it."""
OWN_TOKEN = "FEDLOOM_RAY_TOKEN"
"""Set where the token is one made here, which no other cluster has."""
DECIDED = "FEDLOOM_RAY_SET_UP"
"""Set to the id of the process whose variables have been set."""

_SOCKET = "/ray-abcdefgh/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_LONGEST_ROOT = 107 - len(_SOCKET)
"""Characters of a folder's path below which Ray's sockets can lie: Linux allows 107 in all."""


def token_variables(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the variables with which Ray requires a token from all callers, random unless the user has set one.

    For a Ray that is started here. A process that joins a cluster takes the cluster's token from these variables, and
    none if the cluster has none: the cluster calls back, and would be refused if this process required one.

    Args:
        environment: the process's variables.
        home: of the user, where Ray looks for `.ray/auth_token` once token mode is on.
    """
    chosen = environment.get(MODE, "").strip().lower() not in ("", "disabled")
    has_own = bool(environment.get(TOKEN) or environment.get(TOKEN_FILE))
    has_own = has_own or (chosen and (home / ".ray" / "auth_token").is_file())
    mode = {} if chosen else {MODE: "token"}
    return mode if has_own else {**mode, TOKEN: secrets.token_hex(32)}


def set_up_variables(environment: Mapping[str, str], home: Path, *, joins: bool) -> dict[str, str]:
    """Return the variables to set before Ray is first imported in this process; the first call decides.

    Args:
        environment: the process's variables.
        home: as for `token_variables`.
        joins: whether a running cluster is joined, whose token, if it has one, the user has put there.
    """
    decided = {DECIDED: str(os.getpid())}
    if environment.get(DECIDED) == decided[DECIDED] or "ray" in sys.modules:
        return {}
    if joins:
        return decided
    made = token_variables(environment, home)
    return {**decided, **made, **({OWN_TOKEN: "1"} if TOKEN in made else {})}


def make_folder(environment: Mapping[str, str]) -> Path:
    """Create a folder for Ray's files, sockets and logs that only this user can enter.

    Ray opens its own folder to all users, so that one is below it; `remove_folder` takes the path returned. A folder
    whose path is too long for Ray's sockets is passed over.

    Raises:
        OSError: it cannot be created in RAY_TMPDIR, TMPDIR or /tmp.
    """
    chosen = (environment.get(name, "") for name in ("RAY_TMPDIR", "TMPDIR"))
    root = next((path for path in chosen if path and len(path) <= _LONGEST_ROOT), "/tmp")
    return Path(tempfile.mkdtemp(prefix="ray-", dir=root)) / "r"


def remove_folder(folder: Path) -> None:
    """Remove what `make_folder` made."""
    shutil.rmtree(folder.parent, ignore_errors=True)
