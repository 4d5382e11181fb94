"""Settings of SFedCA: those of its selection, `firing_credit`."""

from __future__ import annotations

from collections.abc import Mapping

import pydantic

from fedloom.core.config import PluginSettings
from fedloom.core.errors import ConfigError
from fedloom.core.kinds import Kind

SELECTION = "firing_credit"
_MOVED = ("select", "rule", "norm", "measurement", "layers", "shortlist", "temperature", "exploration")
"""Settings this section had when the strategy chose the clients."""


class Config(PluginSettings):
    """SFedCA: federated averaging of the clients that the selection `firing_credit` chooses, whose settings are in
    `[selection]`. That is the selection where the experiment names none."""

    name: str = "sfedca"

    @classmethod
    def default_for(cls, kind: Kind) -> str | None:
        return SELECTION if kind is Kind.SELECTION else super().default_for(kind)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _in_its_place(cls, values: object) -> object:
        given = values if isinstance(values, Mapping) else {}
        for key in (key for key in _MOVED if key in given):
            raise ConfigError(
                f"strategy.{key}: {given[key]!r}, but with strategy 'sfedca' the selection {SELECTION!r} chooses the "
                f"clients, and its settings are in [selection]. Write {_place(key, given[key])}"
            )
        return values


def _place(key: str, value: object) -> str:
    """Return the new place of a moved setting."""
    if key == "select":
        return f"cohort = {value} for the clients that are averaged, and selection.candidates for those that train"
    return f"selection.{key} = {value!r}"
