"""Finding strategies, workloads, selections and monitors by name, with no list to edit.

A name is, in this order: a folder of this package (`fedavg`), an entry point of an installed package (group
`fedloom.strategies`, …), an importable module (`my_package.my_strategy`), or a Python file (`./my_strategy.py`). A
package holds its parts in files of fixed names, a module or file of its own holds them all in one place:

    config       `Config`, a `core.config.PluginSettings`
    strategy     `build_strategy(config, experiment) -> Strategy`
    workload     `build_workload(config, experiment) -> Workload`
    selection    `build_selection(config) -> Selection`
    measure      `build_measure() -> Measure`
    rule         `build_rule() -> LocalRule`
    monitor      `build_monitor(config) -> Monitor`
    watch        `build_watch(config) -> Watch`, a monitor's client half
    report       `build_report(run) -> fedloom.reporting.plugins.Contribution`, for strategies, workloads and monitors
    accumulator  `Accumulator`, a class of `core.accumulators.Accumulator` made by `Accumulator(allocate)`
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from fedloom.core.errors import UnknownName

KINDS = ("strategies", "workloads", "selection", "monitors")


def names(kind: str) -> tuple[str, ...]:
    """Every installed name of a kind, sorted; imports none of them."""
    package = importlib.import_module(f"fedloom.{kind}")
    found = {module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg}
    found |= {entry.name for entry in entry_points(group=f"fedloom.{kind}")}
    return tuple(sorted(name for name in found if not name.startswith("_")))


def part(kind: str, name: str, what: str) -> ModuleType:
    """The module holding one part (`config`, `strategy`, `workload`, `rule`, `accumulator`) of a plug-in.

    Raises:
        UnknownName: nothing by this name, or it has no such part; the message names the nearest.
    """
    home = _home(kind, name)
    if not hasattr(home, "__path__"):
        return home
    dotted = f"{home.__name__}.{what}"
    if importlib.util.find_spec(dotted) is None:
        raise UnknownName(f"{kind}: {name!r} has no {what}.py (looked for {dotted})")
    return importlib.import_module(dotted)


def has_part(kind: str, name: str, what: str) -> bool:
    """Whether a plug-in ships this part."""
    home = _home(kind, name)
    if not hasattr(home, "__path__"):
        return hasattr(home, "Accumulator" if what == "accumulator" else f"build_{what}")
    return importlib.util.find_spec(f"{home.__name__}.{what}") is not None


def summary(kind: str, name: str) -> str:
    """The first line of the plug-in's docstring."""
    return (_home(kind, name).__doc__ or "").strip().split("\n")[0]


def _home(kind: str, name: str) -> ModuleType:
    if name.endswith(".py"):
        return _from_file(kind, Path(name))
    if name.isidentifier() and importlib.util.find_spec(f"fedloom.{kind}.{name}") is not None:
        return importlib.import_module(f"fedloom.{kind}.{name}")
    for entry in entry_points(group=f"fedloom.{kind}", name=name):
        loaded = entry.load()
        if isinstance(loaded, ModuleType):
            return loaded
    if "." in name and all(step.isidentifier() for step in name.split(".")) and _importable(name):
        return importlib.import_module(name)
    near = difflib.get_close_matches(name, names(kind), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownName(f"{kind}: unknown name {name!r}; {hint}available: {', '.join(names(kind))}")


def _importable(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{dotted}.".startswith(f"{exc.name}."):
            return False  # one of the name's own packages is missing, not something that package imports
        raise


def _from_file(kind: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownName(f"{kind}: no file {str(path)!r} (looked in {Path.cwd()})")
    full = path.resolve()
    alias = f"_fedloom_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(alias, full)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[alias]
            raise
    return sys.modules[alias]
