"""Reads an experiment's section of a plug-in with the plug-in's own `Config`."""

from __future__ import annotations

from collections.abc import Mapping

import pydantic

from fedloom.core import registry
from fedloom.core.config.settings import PluginSettings, plugin_schema
from fedloom.core.config.validation import config_error
from fedloom.core.kinds import SECTIONS


def read_section(section: str, value: object, strategy: object) -> PluginSettings | None:
    """Return the settings of a plug-in; None if the section is empty and may be.

    Args:
        section: its name.
        value: a name, a table, settings, or None for the default.
        strategy: settings of the experiment's strategy, which may have defaults for other kinds.

    Raises:
        ConfigError: a setting is wrong.
        UnknownName: no such plug-in.
    """
    kind = SECTIONS[section]
    if value is None and kind.default is not None:
        value = strategy.default_for(kind) if isinstance(strategy, PluginSettings) else kind.default
    if value is None and not kind.required:
        return None
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, PluginSettings):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError(f'expected a table with at least `name = "…"`, one of {", ".join(registry.names(kind))}')
    config = plugin_schema(kind, value["name"])
    try:
        return config.model_validate(value)
    except pydantic.ValidationError as exc:
        raise config_error(exc, config, prefix=(section,)) from exc
