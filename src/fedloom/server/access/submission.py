"""What a user's run may have the server do: use what is installed there, and nothing by a path or as code."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fedloom.core import registry
from fedloom.core.errors import Forbidden

_SECTIONS = {"strategy": "strategies", "selection": "selection", "monitor": "monitors", "workload": "workloads"}
"""Sections of an experiment that name a plug-in, and the kind of it."""
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`module:attribute`, which would be imported, and may be called."""
_PATH = re.compile(r"[/\\~]|\.\.")


def check_submission(values: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Let a user's experiment through, or say what in it is not for users.

    The server imports the plug-ins an experiment names and builds its strategy, selection and monitor with the settings
    given. So names must be those of fedloom and of installed plug-ins, and no setting may be a path or `module:name`.
    A workload's settings are the nodes' matter: each node's policy judges them.

    Args:
        values: the experiment, not validated yet.
        allowed: names and settings that whoever started the server has allowed, word for word.

    Raises:
        Forbidden: names the setting, what it is, and what may be done.
    """
    for section, kind in _SECTIONS.items():
        given = values.get(section)
        name = given.get("name") if isinstance(given, Mapping) else given
        if isinstance(name, str) and name not in allowed and name not in registry.names(kind):
            raise _forbidden(section, name, f"is none of the {kind} installed on this server")
        if isinstance(given, Mapping) and section != "workload":
            for where, value in _texts(given, section):
                if value in allowed or where == f"{section}.name":
                    continue
                if _CODE.fullmatch(value):
                    raise _forbidden(where, value, "names code")
                if _PATH.search(value) or os.path.lexists(value):
                    raise _forbidden(where, value, "may be a path on this server")


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text at any depth, keys of tables included, and where it is."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield where, str(key)
            yield from _texts(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, where)


def _forbidden(where: str, value: str, what: str) -> Forbidden:
    return Forbidden(
        f"{where} = {value[:80]!r} {what}, and a user's run may not have it. An administrator may submit the run, or "
        f"whoever starts the server can allow it: fedloom serve --allow {value[:80]!r}"
    )
