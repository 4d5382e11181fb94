"""A workload's settings with the node's own paths and code in them; anything else that names a file is refused."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path

import pydantic

from fedloom.client.data_paths import own_path, replace_text
from fedloom.client.node_code import NodeCode
from fedloom.client.policy import WorkloadPolicy
from fedloom.core.code_names import CodeName
from fedloom.core.config import PluginSettings, plugin_schema
from fedloom.core.errors import ConfigError, PolicyRefused
from fedloom.core.kinds import Kind
from fedloom.core.records import Info, JsonObject
from fedloom.core.setting_types import (
    DATA,
    SettingKind,
    TextSetting,
    default_columns,
    module_file,
    offence,
    open_columns,
    text_settings,
)


class OwnSettings:
    """Replaces names of data and code in a workload's settings with the node's own paths.

    Args:
        code: files and modules that the policy allows.
        private: folders and files that are never data: the node's identity, its policy.
    """

    def __init__(self, code: NodeCode, private: Sequence[Path]) -> None:
        self._code, self._private = code, private

    def insert(self, workload: str, table: Info, allowed: WorkloadPolicy) -> JsonObject:
        """Return a workload's settings with the node's paths inserted.

        Args:
            workload: its name.
            table: its settings as the server sent them.
            allowed: the permissions of the workload.

        Raises:
            PolicyRefused: they name a path, code or a column that is not allowed here.
        """
        own: JsonObject = copy.deepcopy(dict(table))
        apps = list[Path]()
        schema = plugin_schema(Kind.WORKLOAD, workload)
        settings = text_settings(schema, table)
        for setting in sorted(settings, key=lambda each: each.kind is not SettingKind.APP):
            if setting.steps != ("name",):
                text = self._own_text(setting, allowed.data, apps)
                replace_text(own, setting.steps, text)
                apps += [Path(text)] if setting.kind is SettingKind.APP else []
        _admit_columns(schema, own, allowed)
        return own

    def _own_text(self, setting: TextSetting, data: Path | None, apps: Sequence[Path]) -> str:
        """Return a text of the workload's settings with the node's paths; `apps` are the folders of its hosted apps."""
        code = CodeName.parse(setting.value) if setting.kind in (SettingKind.APP, SettingKind.CODE) else None
        if code is not None:
            path = self._code.find(code, f"workload setting {setting.dotted}")
            return f"{path}:{code.attribute}" if code.attribute else str(path)
        found = offence(setting)
        if found == "empty":
            raise PolicyRefused(f"workload setting {setting.dotted} is an empty path; write {DATA}/…", kind="data")
        if found == "path":
            return self._path(setting, data)
        if found == "code" and not self._allows(setting, apps):
            raise PolicyRefused(
                f"workload setting {setting.dotted} = {setting.value[:80]!r} names code that the node's policy "
                "does not allow; its owner can list the module, file or folder under `code`. Files and folders are "
                "named by name and SHA-256, as `fedloom submit` sends them",
                kind="code",
            )
        return setting.value

    def _path(self, setting: TextSetting, data: Path | None) -> str:
        """Return a path below the data folder, and reject the node's own files."""
        path = own_path(setting, data)
        if any(Path(path).is_relative_to(own) or own.is_relative_to(path) for own in self._private):
            raise PolicyRefused(
                f"workload setting {setting.dotted}: the node's identity, policy and state are no data", kind="data"
            )
        return path

    def _allows(self, setting: TextSetting, apps: Sequence[Path]) -> bool:
        """Return whether the policy lists the module of code, or an app's folder contains it."""
        module, colon, name = setting.value.rpartition(":")
        if setting.kind is SettingKind.APP or not (colon and name):
            return False
        return self._code.lists_module(module) or any(module_file(setting.value, app.resolve()) for app in apps)


def _admit_columns(schema: type[PluginSettings], own: Info, allowed: WorkloadPolicy) -> None:
    """Refuse columns that the policy does not name, those the workload reads by default included."""
    named = default_columns(schema) if allowed.columns is None else frozenset(allowed.columns)
    with contextlib.suppress(pydantic.ValidationError, ConfigError):  # said when the experiment is parsed
        parsed = schema.model_validate(own)
        own = parsed.model_dump(mode="json", by_alias=True, exclude_none=True)
        if where := next(open_columns(parsed), ""):
            raise PolicyRefused(
                f"workload setting {where} names no columns, which reads all others; name those to be read. The node's "
                f"policy names: {', '.join(sorted(named)) or 'none'}; its owner may add others to `columns`",
                kind="data",
            )
    for setting in text_settings(schema, own):
        if setting.kind is SettingKind.COLUMN and setting.value not in named:
            listed = ", ".join(sorted(named)) or "none"
            raise PolicyRefused(
                f"workload setting {setting.dotted} = {setting.value[:80]!r} is no column that the node's policy names "
                f"(named: {listed}); its owner may add it to `columns`",
                kind="data",
            )
