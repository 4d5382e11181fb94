"""Finds plug-ins' contributions to a study, with no list to edit.

The plug-ins that the study's experiments name come first, then all other installed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, FedloomError
from fedloom.core.plugins import build_value, parts_named
from fedloom.core.registry import PartRef
from fedloom.core.text import did_you_mean
from fedloom.reporting.study_part import Analysis, NumberColumn, StaticTest, StudyPart
from fedloom.studies.definition import Definition
from fedloom.studies.measures import GENERAL

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlannedTest:
    """A test to run next to the run."""

    name: str
    """Its name in the study's `tests`."""
    ref: PartRef
    """The plug-in's part that contributes it."""
    test: StaticTest
    """The test with its settings."""

    def in_run(self, scenario: str, arm: str) -> bool:
        """Return whether it accompanies the runs of this scenario and arm."""
        return arm == self.test.arm and scenario in (self.test.scenarios or (scenario,))


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyParts:
    """The study parts of plug-ins: the names available to a study's definition."""

    own: Mapping[PartRef, StudyPart]
    """Parts of the plug-ins that the study's experiments name. They take precedence."""
    installed: Mapping[PartRef, StudyPart]
    """Parts of all other installed plug-ins."""
    unreadable: Mapping[PartRef, str] = field(default_factory=dict)
    """Why other installed plug-ins could not be loaded."""

    @classmethod
    def of(cls, experiments: Iterable[Experiment]) -> StudyParts:
        """Find the parts for a study of these experiments.

        Raises:
            PluginInvalid: the part of a plug-in that an experiment names is not sound.
        """
        refs = dict.fromkeys(ref for each in experiments for ref in parts_named(each.to_dict(), "study"))
        own = {ref: build_value(ref, StudyPart) for ref in refs}
        installed, unreadable = dict[PartRef, StudyPart](), dict[PartRef, str]()
        for ref in registry.installed("study"):
            try:
                if ref not in own and ref.exists():
                    installed[ref] = build_value(ref, StudyPart)
            except FedloomError as exc:  # a plug-in that the study may do without
                unreadable[ref] = str(exc)
        return cls(own=own, installed=installed, unreadable=unreadable)

    def analyses(self, definition: Definition) -> list[Analysis]:
        """Return the definition's `analyses`.

        Raises:
            ConfigError: no plug-in, or several, define one of them.
        """
        return [self._analysis(name)[1] for name in definition.analyses]

    def tests(self, definition: Definition) -> list[PlannedTest]:
        """Return the definition's `tests`, each with its settings.

        Raises:
            ConfigError: no plug-in, or several, define one of them, or a setting is wrong.
        """
        return [self._test(definition, name) for name in definition.tests]

    def columns(self, definition: Definition) -> tuple[NumberColumn, ...]:
        """Return the columns of the parts in use; the first for each number."""
        found = dict[str, NumberColumn]()
        for part in self._in_use(definition):
            for column in part.columns:
                found.setdefault(column.number, column)
        return tuple(found.values())

    def ratios(self, definition: Definition) -> frozenset[str]:
        """Return the numbers of the parts in use whose ratio to the reference's is given."""
        return frozenset(name for part in self._in_use(definition) for name in part.ratios)

    def _in_use(self, definition: Definition) -> list[StudyPart]:
        """Return the general part, those of the experiments' plug-ins, and those the definition names."""
        named = [self._analysis(name)[0] for name in definition.analyses]
        named += [self._find("tests", name, lambda part: part.tests)[1] for name in definition.tests]
        return [GENERAL, *self.own.values(), *named]

    def _analysis(self, name: str) -> tuple[StudyPart, Analysis]:
        if name in GENERAL.analyses:
            return GENERAL, GENERAL.analyses[name]
        return self._find("analyses", name, lambda part: part.analyses, GENERAL.analyses)[1:]

    def _test(self, definition: Definition, name: str) -> PlannedTest:
        ref, _, kind = self._find("tests", name, lambda part: part.tests)
        return PlannedTest(name, ref, definition.parse_test(name, kind))

    def _find(
        self, key: str, name: str, table: Callable[[StudyPart], Mapping[str, T]], general: Iterable[str] = ()
    ) -> tuple[PartRef, StudyPart, T]:
        """Find a plug-in's part by this name; the same object from several plug-ins counts once."""
        for parts in (self.own, self.installed):
            having = [(ref, part) for ref, part in parts.items() if name in table(part)]
            if len({id(table(part)[name]) for _, part in having}) > 1:
                several = ", ".join(f"{ref.kind.section} {ref.name!r}" for ref, _ in having)
                raise ConfigError(f"{key}: several plug-ins define {name!r} ({several}); one of them must rename it")
            if having:
                ref, part = having[0]
                return ref, part, table(part)[name]
        known = {each for parts in (self.own, self.installed) for part in parts.values() for each in table(part)}
        raise ConfigError(self._unknown(key, name, sorted(known.union(general))))

    def _unknown(self, key: str, name: str, known: Sequence[str]) -> str:
        hint = did_you_mean(name, known)
        failed = "".join(
            f"\n  {ref.kind.section} {ref.name!r} could not be loaded: {why}" for ref, why in self.unreadable.items()
        )
        return f"{key}: no installed plug-in defines {name!r}; {hint}known here: {', '.join(known) or 'none'}{failed}"
