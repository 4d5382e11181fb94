"""Sections of the kinds of plug-ins for which `Experiment` declares none itself."""

from __future__ import annotations

import typing

import pydantic
from pydantic import Field, SerializeAsAny

from fedloom.core.config.settings import PluginSettings, Settings
from fedloom.core.kinds import Kind

_WITH_FIELD = (Kind.STRATEGY, Kind.WORKLOAD, Kind.SELECTION, Kind.MONITOR)
"""Kinds whose section `Experiment` declares with a specific type, because the platform's code reads it by name."""
if typing.TYPE_CHECKING:
    FurtherSections = Settings
else:
    FurtherSections = pydantic.create_model(
        "FurtherSections",
        __base__=Settings,
        **{
            kind.section: (
                SerializeAsAny[PluginSettings] | (PluginSettings if kind.required else None),
                Field(
                    default=... if kind.required else None,
                    validate_default=kind.default is not None,
                    description=f"A plug-in of the kind `{kind}`, and its settings.",
                ),
            )
            for kind in Kind
            if kind not in _WITH_FIELD
        },
    )
