"""The kinds of plug-ins: one table, a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

_EXPERIMENT = ("config", "experiment")
_EVERY: Mapping[str, tuple[str, ...]] = MappingProxyType({"report": ("run",), "study": ()})
"""Parts that plug-ins of every kind may have."""


class Kind(StrEnum):
    """A kind of plug-ins.

    The value names their package in fedloom, `fedloom.strategies`, and the group of their entry points. A row has, in
    this order: the value, the section, the parts.
    """

    section: str
    """The experiment's section that names one; also the sub-package that holds one in a folder of another kind."""
    parts: Mapping[str, tuple[str, ...]]
    """The parts made by a function `build_<part>`, each with the names of that function's arguments."""

    def __new__(
        cls, value: str, section: str = "", parts: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    ) -> Kind:
        """Make a member of a row of the table."""
        member = str.__new__(cls, value)
        member._value_, member.section, member.parts = value, section, MappingProxyType({**parts, **_EVERY})
        return member

    STRATEGY = "strategies", "strategy", {"strategy": _EXPERIMENT, "rule": ()}
    WORKLOAD = "workloads", "workload", {"workload": _EXPERIMENT}
    SELECTION = "selection", "selection", {"selection": ("config",), "measure": ()}
    MONITOR = "monitors", "monitor", {"monitor": ("config",), "watch": ("config",)}


SECTIONS: Mapping[str, Kind] = MappingProxyType({kind.section: kind for kind in Kind})
"""The sections of an experiment that name a plug-in, each with the kind it names."""
