"""Finds strategies, workloads, selections and monitors by name, with no list to edit.

A name is, in this order: a folder of this package (`fedavg`, `flora`), an entry point of an installed package
(group `fedloom.strategies`, …), an importable module (`my_package.my_strategy`), or a path: a Python file
(`./my_strategy.py`) or a package's folder (`./my_strategy`, with a slash), or such a file by name and SHA-256
(`my_strategy.py#sha256=…`, `core.code_names`). A folder or an entry point's package may
hold plug-ins of other kinds by its own name, each in a sub-package named by its section:
`fedloom/strategies/mano/workload` is the workload `mano` (`core.plugin_folders`). A
package holds its parts in files of fixed names, a single module or file contains them all:

    config       `Config`, a `core.config.PluginSettings`
    strategy     `build_strategy(config, experiment) -> Strategy`
    workload     `build_workload(config, experiment) -> Workload`
    selection    `build_selection(config) -> Selection`
    measure      `build_measure() -> Measure`
    rule         `build_rule() -> LocalRule`
    monitor      `build_monitor(config) -> Monitor`
    watch        `build_watch(config) -> Watch`, a monitor's client half
    report       `build_report(run) -> fedloom.reporting.plugins.Contribution`, for every kind
    study        `build_study() -> fedloom.reporting.study_part.StudyPart`, for every kind
    accumulator  `Accumulator`, a class of `core.accumulators.Accumulator` made by `Accumulator(allocate)`

`core.plugins` builds the objects; here names become modules. What a folder contributes besides plug-ins is found by
`core.definitions` (presets, studies) and `core.contributed` (commands, loaders of folders).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Literal, TypeVar

from fedloom.core import plugin_folders
from fedloom.core.code_names import CodeName, stored
from fedloom.core.errors import FedloomError, UnknownName
from fedloom.core.extras import needed_by
from fedloom.core.kinds import Kind
from fedloom.core.plugin_faults import plugin_fault
from fedloom.core.text import did_you_mean

T = TypeVar("T")
_INIT = "__init__.py"
Origin = Literal["bundled", "plugin", "module", "file"]
"""Origin of a part: fedloom itself, an installed package's entry point, an importable module, a Python file."""


@dataclass(frozen=True, slots=True)
class PartRef:
    """One part of a plug-in, by name: the target of a name in an experiment or on the wire."""

    kind: Kind
    name: str
    """Folder, entry point, module or path."""
    part: str
    """`rule`, `accumulator`, `measure`, … ."""

    @property
    def origin(self) -> Origin:
        """Return the origin of the part; imports nothing of a module or file.

        Raises:
            UnknownName: no such plug-in.
        """
        if is_path(self.name) or CodeName.parse(self.name) is not None:
            return "file"
        if plugin_folders.bundled_module(self.kind, self.name) is not None:
            return "bundled"
        if plugin_folders.declared(self.kind, self.name):
            return "plugin"
        if plugin_folders.nested_in_entry_point(self.kind, self.name) is not None:
            return "plugin"
        if _is_dotted(self.name):
            return "module"
        raise _unknown(self.kind, self.name)

    @property
    def installed(self) -> bool:
        """Return whether this machine's administrator installed it as part of fedloom or as a plug-in."""
        try:
            return self.origin in ("bundled", "plugin")
        except UnknownName:
            return False

    @property
    def in_one_file(self) -> bool:
        """Return whether the plug-in is a module or file with all of its parts.

        Raises:
            UnknownName: no such plug-in.
            PluginInvalid: it cannot be imported.
        """
        return not _is_package(_home(self.kind, self.name))

    def load(self) -> ModuleType:
        """Import the module of the part.

        Raises:
            UnknownName: no such plug-in, or it has no such part; the message names the nearest.
            PackageMissing: the part needs an optional package that is not installed.
            PluginInvalid: a module or file outside fedloom cannot be imported.
        """
        with needed_by(f"{self.kind.section} {self.name!r}"):
            home = _home(self.kind, self.name)
            if not _is_package(home):
                return home
            dotted = f"{home.__name__}.{self.part}"
            if importlib.util.find_spec(dotted) is None:
                raise UnknownName(f"{self.kind}: {self.name!r} has no {self.part}.py (looked for {dotted})")
            return importlib.import_module(dotted)

    def exists(self) -> bool:
        """Return whether the plug-in ships this part."""
        home = _home(self.kind, self.name)
        if not _is_package(home):
            return ("Accumulator" if self.part == "accumulator" else f"build_{self.part}") in vars(home)
        return importlib.util.find_spec(f"{home.__name__}.{self.part}") is not None


def names(kind: str) -> tuple[str, ...]:
    """Return every installed name of a kind, sorted; imports none of them."""
    return tuple(sorted(name for name in plugin_folders.names(Kind(kind)) if not name.startswith("_")))


def part(kind: str, name: str, what: str) -> ModuleType:
    """Return the module holding one part (`config`, `strategy`, `workload`, `rule`, `accumulator`) of a plug-in.

    Raises:
        UnknownName: nothing by this name, or it has no such part; the message names the nearest.
    """
    return PartRef(Kind(kind), name, what).load()


def has_part(kind: str, name: str, what: str) -> bool:
    """Return whether a plug-in ships this part."""
    return PartRef(Kind(kind), name, what).exists()


def installed(what: str) -> Iterator[PartRef]:
    """Yield a reference to this part of every installed plug-in, by kind and name; not all have it. Imports none."""
    for kind in Kind:
        for name in names(kind):
            yield PartRef(kind, name, what)


def summary(kind: str, name: str) -> str:
    """Return the first line of the plug-in's docstring."""
    return (_home(Kind(kind), name).__doc__ or "").strip().split("\n")[0]


def _home(kind: Kind, name: str) -> ModuleType:
    if (code := CodeName.parse(name)) is not None:
        copy = stored(code)
        return _imported(kind, name, lambda: _from_file(kind, copy), copy)
    if is_path(name):
        return _imported(kind, name, lambda: _from_file(kind, Path(name)), Path(name))
    if (bundled := plugin_folders.bundled_module(kind, name)) is not None:
        return importlib.import_module(bundled)
    for entry in plugin_folders.declared(kind, name):
        loaded = _imported(kind, name, entry.load)
        if isinstance(loaded, ModuleType):
            return loaded
    if (nested := plugin_folders.nested_in_entry_point(kind, name)) is not None:
        return _imported(kind, name, lambda: importlib.import_module(nested))
    if _is_dotted(name) and _imported(kind, name, lambda: _importable(name)):
        return _imported(kind, name, lambda: importlib.import_module(name))
    raise _unknown(kind, name)


def is_path(name: str) -> bool:
    """Return whether a plug-in's name is the path of a Python file or of a package's folder."""
    return name.endswith(".py") or ("/" in name and CodeName.parse(name) is None)


def _is_dotted(name: str) -> bool:
    return "." in name and all(step.isidentifier() for step in name.split("."))


def _is_package(module: ModuleType) -> bool:
    return "__path__" in vars(module)


def _unknown(kind: Kind, name: str) -> UnknownName:
    hint = did_you_mean(name, names(kind))
    return UnknownName(f"{kind}: unknown name {name!r}; {hint}available: {', '.join(names(kind))}")


def _importable(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{dotted}.".startswith(f"{exc.name}."):
            return False  # one of the name's own packages is missing, not something that package imports
        raise


def _imported(kind: Kind, name: str, load: Callable[[], T], file: Path | None = None) -> T:
    """Import a plug-in's code and return the result of `load`.

    Raises:
        PackageMissing: it needs an optional package that is not installed.
        PluginInvalid: the import raised.
    """
    try:
        with needed_by(f"{kind.section} {name!r}"):
            return load()
    except (FedloomError, KeyboardInterrupt):
        raise
    except BaseException as exc:  # a module that calls sys.exit when it is imported, too
        what = f"{kind.section} {name!r} cannot be imported"
        raise plugin_fault(what, exc, str(file.resolve()) if file else None) from exc


def _from_file(kind: Kind, path: Path) -> ModuleType:
    if path.is_dir() and not (path / _INIT).is_file():
        raise UnknownName(f"{kind}: the folder {str(path)!r} has no {_INIT}, expected a package's (in {Path.cwd()})")
    if not path.is_dir() and not (path.is_file() and path.suffix == ".py"):
        raise UnknownName(f"{kind}: file {str(path)!r} not found (looked in {Path.cwd()})")
    return load_file(path)


def forget_changed() -> None:
    """Forget the modules of files and folders that have changed since they were imported: they are imported anew.

    Called where an experiment is loaded, so that edited plug-ins are used in a session that has used them before, and
    never while a run uses them.
    """
    for alias, (path, stamp) in list(_stamps.items()):
        if _stamp(path) != stamp:
            del _stamps[alias]
            for name in [name for name in sys.modules if name == alias or name.startswith(f"{alias}.")]:
                del sys.modules[name]


_stamps: dict[str, tuple[Path, object]] = {}
"""File or folder of each imported alias, and what tells that it has changed."""


def _stamp(path: Path) -> object:
    """Return times and sizes of a file, or of a folder's Python files."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [(str(each), stat.st_mtime_ns, stat.st_size) for each in files if (stat := _stat(each)) is not None]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def file_alias(path: Path) -> str:
    """Name the module that `load_file` makes of a file: the same in every process."""
    full = path.resolve()
    return f"_fedloom_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"


class _Uncached(SourceFileLoader):
    """Compiles a file whenever it is imported: Python's cache misses edits within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load_file(path: Path) -> ModuleType:
    """Import a Python file as a module, or a folder with an `__init__.py` as a package, once."""
    full, alias = path.resolve(), file_alias(path)
    if alias not in sys.modules:
        folders = [str(full)] if full.is_dir() else None
        file = full / _INIT if folders else full
        loader = _Uncached(alias, str(file))
        spec = importlib.util.spec_from_file_location(alias, file, loader=loader, submodule_search_locations=folders)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        _stamps[alias] = (full, _stamp(full))
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[alias], _stamps[alias]
            raise
    return sys.modules[alias]
