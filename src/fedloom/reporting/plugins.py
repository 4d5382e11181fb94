"""What plug-ins say about their own runs: sections of the report, numbers for studies."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

from fedloom.core import registry
from fedloom.core.errors import UnknownName
from fedloom.core.kinds import SECTIONS
from fedloom.reporting.markup import Markup
from fedloom.reporting.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """A plug-in's part of a report; made by `build_report(run)` in its folder's `report.py`."""

    sections: tuple[Markup, ...] = ()
    """Drawn after the learning curves, in order."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the run that a study compares; names without a dot. NaN where one does not apply."""
    headlines: Mapping[str, str] = field(default_factory=dict)
    """The few results a comparison of runs shows beside accuracy and bytes: a row's name, and what stands in it."""


def contributions(run: RunFolder) -> list[Contribution]:
    """Return those of the run's plug-ins, in the order of their kinds.

    A plug-in that is not installed here gives none, and a file that holds several plug-ins gives its own once.
    """
    found = dict[ModuleType, Contribution]()
    for section, kind in SECTIONS.items():
        chosen = run.experiment.get(section, "")  # a table, or by hand the name alone
        name = chosen if isinstance(chosen, str) else str(chosen.get("name", ""))
        with contextlib.suppress(UnknownName):
            if registry.has_part(kind, name, "report"):
                part = registry.part(kind, name, "report")
                if part not in found:
                    found[part] = part.build_report(run)
    return list(found.values())
