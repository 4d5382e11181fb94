"""The kinds of plug-ins: one table, a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

_EXPERIMENT = ("config", "experiment")
_EVERY: Mapping[str, tuple[str, ...]] = MappingProxyType({"report": ("run",), "study": ()})
"""Parts that plug-ins of every kind may have."""
_REQUIRED = "(required)"


class Kind(StrEnum):
    """A kind of plug-ins.

    The value names their package in fedloom, `fedloom.strategies`, and the group of their entry points. A row has, in
    this order: the value, the section, the parts, and the default.

    A new row is listed, configured, guarded and documented like the others: all of these read the table.
    """

    section: str
    """The experiment's section for it; also the name of its sub-package in a folder of another kind."""
    parts: Mapping[str, tuple[str, ...]]
    """The parts made by a function `build_<part>`, each with the names of that function's arguments."""
    default: str | None
    """The plug-in of an experiment that names none, unless its strategy has another (`PluginSettings.default_for`).
    None if there is none, or one has to be named."""
    required: bool
    """Whether every experiment has to name one."""

    def __new__(
        cls,
        value: str,
        section: str = "",
        parts: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
        default: str | None = None,
    ) -> Kind:
        """Make a member of a row of the table."""
        member = str.__new__(cls, value)
        member._value_, member.section, member.parts = value, section, MappingProxyType({**parts, **_EVERY})
        member.required = default == _REQUIRED
        member.default = None if member.required else default
        return member

    STRATEGY = "strategies", "strategy", {"strategy": _EXPERIMENT, "rule": ()}, _REQUIRED
    WORKLOAD = "workloads", "workload", {"workload": _EXPERIMENT}, _REQUIRED
    SELECTION = "selection", "selection", {"selection": ("config",), "measure": ()}, "uniform"
    MONITOR = "monitors", "monitor", {"monitor": ("config",), "watch": ("config",)}, None


SECTIONS: Mapping[str, Kind] = MappingProxyType({kind.section: kind for kind in Kind})
"""The sections of an experiment that name a plug-in, each with its kind."""
