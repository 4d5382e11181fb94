"""What a user's run may have the server do: use what is installed there, and nothing by a path or as code."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping

from fedloom.core.config import plugin_schema
from fedloom.core.errors import Forbidden
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.records import Info
from fedloom.core.registry import PartRef
from fedloom.core.setting_types import SettingKind, TextSetting, text_settings

_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`module:attribute`, which would be imported, and may be called."""
_PATH = re.compile(r"[/\\~]|\.\.")


def check_submission(values: Info, allowed: Collection[str]) -> None:
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
    for section, kind in SECTIONS.items():
        given = values.get(section)
        name = given.get("name") if isinstance(given, Mapping) else given
        if not isinstance(name, str):
            continue
        ref = PartRef(kind, name, section)
        if name not in allowed and not ref.installed:
            raise _forbidden(section, name, f"is none of the {kind} installed on this server")
        if isinstance(given, Mapping) and kind is not Kind.WORKLOAD:
            for setting in text_settings(plugin_schema(kind, name), given):
                if setting.value not in allowed and setting.steps != ("name",):
                    _check_text(f"{section}.{setting.dotted}", setting)
            for where, key in _keys(given, section):
                _check_text(where, TextSetting((), key, SettingKind.PLAIN, declared=False))


def _check_text(where: str, setting: TextSetting) -> None:
    """Refuse a text that names code or may be a path, by its declared kind or by its looks."""
    value = setting.value
    if setting.kind is SettingKind.CODE or _CODE.fullmatch(value):
        raise _forbidden(where, value, "names code")
    if setting.kind is SettingKind.PATH or _PATH.search(value) or os.path.lexists(value):
        raise _forbidden(where, value, "may be a path on this server")


def _keys(value: object, where: str) -> Iterator[tuple[str, str]]:
    """Every key of a table at any depth, and where it is."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield where, str(key)
            yield from _keys(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _keys(inner, where)


def _forbidden(where: str, value: str, what: str) -> Forbidden:
    return Forbidden(
        f"{where} = {value[:80]!r} {what}, and a user's run may not have it. An administrator may submit the run, or "
        f"whoever starts the server can allow it: fedloom serve --allow {value[:80]!r}"
    )
