"""Builds the objects plug-ins provide, each checked against its interface when it is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TypeVar

from fedloom.core.accumulators import BUILTIN, Accumulator, Allocate
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.contracts import check_call, check_workload, conform
from fedloom.core.errors import FedloomError, PluginInvalid, UnknownName
from fedloom.core.extras import needed_by
from fedloom.core.kinds import SECTIONS, Kind
from fedloom.core.plugin_faults import plugin_fault
from fedloom.core.protocols import (
    LocalRule,
    Measure,
    Monitor,
    RuleChain,
    Selection,
    Shard,
    Strategy,
    Watch,
    Workload,
)
from fedloom.core.records import Info
from fedloom.core.registry import PartRef

T = TypeVar("T")
AnyStrategy = Strategy[object, Accumulator]
"""A strategy as the loop sees it: the types of its states and accumulators are unknown to the platform."""
AnySelection = Selection[object]
AnyWorkload = Workload[Shard]


def build_strategy(settings: PluginSettings, experiment: Experiment) -> AnyStrategy:
    """Build the strategy an experiment names.

    Raises:
        UnknownName: nothing by this name is installed here.
        PluginInvalid: a method is missing, misspelt or wrongly shaped; the message names file and line.
    """
    ref = PartRef(Kind.STRATEGY, settings.name, "strategy")
    return conform(_call(ref, settings, experiment), AnyStrategy, ref)


def build_selection(settings: PluginSettings) -> AnySelection:
    """Build the selection an experiment names. Raises as `build_strategy` does."""
    ref = PartRef(Kind.SELECTION, settings.name, "selection")
    return conform(_call(ref, settings), AnySelection, ref)


def build_workload(settings: PluginSettings, experiment: Experiment) -> AnyWorkload:
    """Build the workload an experiment names. Raises as `build_strategy` does."""
    ref = PartRef(Kind.WORKLOAD, settings.name, "workload")
    return check_workload(_call(ref, settings, experiment), ref)


def build_monitor(settings: PluginSettings) -> Monitor:
    """Build the monitor an experiment names. Raises as `build_strategy` does."""
    ref = PartRef(Kind.MONITOR, settings.name, "monitor")
    return conform(_call(ref, settings), Monitor, ref)


def build_watch(settings: PluginSettings) -> Watch:
    """Build the client half of the monitor an experiment names. Raises as `build_strategy` does."""
    ref = PartRef(Kind.MONITOR, settings.name, "watch")
    return conform(_call(ref, settings), Watch, ref)


def check_parts(experiment: Experiment) -> None:
    """Build the server's parts of an experiment and drop them, so that a run begins only with valid ones.

    Client halves are checked, too, if they are in the same file: others may need libraries only clients have. The
    workload is the agents' to build.

    Raises:
        UnknownName: nothing by a name is installed here.
        PluginInvalid: a part cannot be imported or built, or does not fit its interface.
    """
    strategy, selection, monitor = experiment.strategy, experiment.selection, experiment.monitor
    build_strategy(strategy, experiment).close()
    build_selection(selection)
    if _is_beside(PartRef(Kind.STRATEGY, strategy.name, "rule")):
        build_rules([strategy.name])
    if _is_beside(PartRef(Kind.SELECTION, selection.name, "measure")):
        build_measure(selection.name)
    if monitor is not None:
        build_monitor(monitor)
        if _is_beside(PartRef(Kind.MONITOR, monitor.name, "watch")):
            build_watch(monitor)


def _is_beside(ref: PartRef) -> bool:
    """Return whether a part is in the same file as all others of its plug-in."""
    return ref.in_one_file and ref.exists()


def build_measure(name: str) -> Measure:
    """Build the client half of a selection. Raises as `build_strategy` does."""
    ref = PartRef(Kind.SELECTION, name, "measure")
    return conform(_call(ref), Measure, ref)


def build_rules(names: Sequence[str]) -> tuple[LocalRule, ...]:
    """Build the client halves an exchange names, in order. Raises as `build_strategy` does."""
    refs = [PartRef(Kind.STRATEGY, name, "rule") for name in names]
    return tuple(conform(_call(ref), LocalRule, ref) for ref in refs)


def chained(rules: Sequence[LocalRule]) -> LocalRule | None:
    """Return rules as one; None for none."""
    return None if not rules else rules[0] if len(rules) == 1 else RuleChain(rules)


def accumulator_class(name: str) -> type[Accumulator]:
    """Return the accumulator an exchange names: a built-in one, or a strategy folder's.

    Raises:
        UnknownName: there is none by this name.
        PluginInvalid: the folder's `accumulator.py` defines no class `Accumulator`.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    ref = PartRef(Kind.STRATEGY, name, "accumulator")
    found = vars(ref.load()).get("Accumulator")
    if not isinstance(found, type):
        raise PluginInvalid(f"{_place(ref)}: expected a class Accumulator, found {found!r}")
    return found


def make_accumulator(name: str, allocate: Allocate | None) -> Accumulator:
    """Make an empty accumulator of the kind an exchange names, in memory `allocate` gives."""
    make: Callable[[Allocate | None], Accumulator] = accumulator_class(name)
    return make(allocate)


def parts_named(experiment: Info, what: str, *, only_installed: bool = False) -> list[PartRef]:
    """Return references to this part of the plug-ins an experiment names, in the order of their kinds.

    A plug-in that is not installed here is omitted, and a file with several plug-ins occurs once.

    Args:
        experiment: the experiment, as its TOML has it.
        what: the part, `report` or `study`.
        only_installed: omit files, folders and modules that the experiment names; nothing of them is imported.
    """
    found = dict[ModuleType, PartRef]()
    for section, kind in SECTIONS.items():
        chosen = experiment.get(section, "")  # a table, or the name alone
        name = chosen.get("name", "") if isinstance(chosen, Mapping) else chosen
        ref = PartRef(kind, name if isinstance(name, str) else "", what)
        with contextlib.suppress(UnknownName):
            if (ref.installed or not only_installed) and ref.exists():
                found.setdefault(ref.load(), ref)
    return list(found.values())


def build_value(ref: PartRef, kind: type[T], *arguments: object) -> T:
    """Call the `build_…` function of a part that returns a value of a fixed class.

    Raises:
        UnknownName: no such plug-in is installed here, or it has no such part.
        PluginInvalid: it has no such function, its arguments differ, it raised, or it returned another type.
    """
    found = _call(ref, *arguments)
    if not isinstance(found, kind):
        expected = f"{kind.__module__}.{kind.__qualname__}"
        raise PluginInvalid(f"{_place(ref)}: build_{ref.part} returned {_kind_of(found)}, expected a {expected}")
    return found


def _call(ref: PartRef, *arguments: object) -> object:
    """Call the part's `build_…` function."""
    module = ref.load()
    build = vars(module).get(f"build_{ref.part}")
    if not callable(build):
        raise PluginInvalid(f"{_place(ref)}: expected a function build_{ref.part}, found {_kind_of(build)}")
    check_call(f"build_{ref.part}", build, ref.kind.parts[ref.part], ref)
    try:
        with needed_by(f"{ref.kind.section} {ref.name!r}"):
            return build(*arguments)
    except (FedloomError, KeyboardInterrupt):
        raise
    except BaseException as exc:
        if ref.origin == "bundled" or ref.part == "workload":  # a fault of fedloom, or of the machine
            raise
        what = f"{ref.kind.section} {ref.name!r}, build_{ref.part}"
        raise plugin_fault(what, exc, module.__file__) from exc


def _kind_of(found: object) -> str:
    return "none" if found is None else f"a {type(found).__name__}"


def _place(ref: PartRef) -> str:
    return f"{ref.kind.section} {ref.name!r} ({ref.load().__file__})"
