"""Plug-ins' contributions to reports of their own runs: sections, numbers for studies, headlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedloom.core.kinds import SECTIONS
from fedloom.core.plugins import build_value, parts_named
from fedloom.core.records import JsonObject
from fedloom.core.run_files import PLUGINS
from fedloom.reporting.example_scores import ExampleScores
from fedloom.reporting.markup import Markup
from fedloom.reporting.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainTable:
    """A small table for the terminal."""

    head: tuple[str, ...]
    """The columns' headings."""
    rows: tuple[tuple[str, ...], ...]
    """One text for each column; the first is left-aligned, the others right-aligned."""

    def lines(self) -> list[str]:
        """Return the table's lines, columns padded to equal widths."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        return [
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (self.head, *self.rows)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """A plug-in's part of a report; made by `build_report(run)` in its folder's `report.py`."""

    sections: tuple[Markup, ...] = ()
    """Drawn after the learning curves, in order."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the run for studies; names without a dot. NaN if one does not apply."""
    scores: Mapping[str, ExampleScores] = field(default_factory=dict)
    """What held-out examples contribute to those of the numbers that are means over them."""
    headlines: Mapping[str, str] = field(default_factory=dict)
    """The few results in a comparison of runs besides accuracy and bytes: row names and values."""
    tables: tuple[PlainTable, ...] = ()
    """Printed when a run ends in a terminal."""


def contributions(run: RunFolder, *, with_code: bool = False) -> list[Contribution]:
    """Return the contributions of the run's plug-ins, in the order of their kinds.

    A plug-in that is not installed here has none, and a file with several plug-ins has its own once.

    Args:
        run: the run.
        with_code: import files, folders and modules that the run's experiment names, and its copies of them. Only for
            a run that this process has done: a folder from elsewhere may name any code.

    Raises:
        PluginInvalid: a plug-in's `build_report` raised, or returned another type.
    """
    named = _with_own_copies(run) if with_code else run.experiment
    return [build_value(ref, Contribution, run) for ref in parts_named(named, "report", only_installed=not with_code)]


def _with_own_copies(run: RunFolder) -> JsonObject:
    """Return the names of a run's plug-ins by section, those of its copies of code with the folder before them."""
    chosen = {section: run.experiment.get(section) for section in SECTIONS}
    names = {section: each.get("name") if isinstance(each, Mapping) else each for section, each in chosen.items()}
    return {
        section: str(run.path / name) if name.startswith(f"./{PLUGINS}/") else name
        for section, name in names.items()
        if isinstance(name, str)
    }
