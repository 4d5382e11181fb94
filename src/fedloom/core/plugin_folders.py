"""Finds plug-ins, in fedloom and in installed packages that declare entry points. Imports none of them.

A folder lies under its main kind, `fedloom/strategies/mano`, or is the package an entry point names. It may hold
plug-ins of the other kinds, of the same name, each in a sub-package named by its section: `mano/workload`,
`mano/monitor`.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import get_importer, iter_modules

from fedloom.core.kinds import Kind


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one or more plug-ins of one name."""

    kind: Kind
    """Its main kind."""
    name: str
    package: str
    """The dotted name of its package."""
    path: Path


def bundled_module(kind: Kind, name: str) -> str | None:
    """Return the dotted name of fedloom's own plug-in; None if fedloom has none by this name."""
    if not name.isidentifier():
        return None
    own = f"fedloom.{kind}.{name}"
    if module_spec(own) is not None:
        return own
    nested = (f"fedloom.{other}.{name}.{kind.section}" for other in Kind if other is not kind)
    return next((module for module in nested if is_package(module)), None)


def nested_in_entry_point(kind: Kind, name: str) -> str | None:
    """Return the dotted name of a plug-in within the package that an entry point of another kind names."""
    for entry in _entry_points():
        module = f"{entry.module}.{kind.section}"
        if entry.name == name and entry.group != f"fedloom.{kind}" and not entry.attr and is_package(module):
            return module
    return None


def names(kind: Kind) -> set[str]:
    """Return the names of all plug-ins of a kind, those that begin with an underscore included."""
    found = {module.name for path in package_paths(f"fedloom.{kind}") for module in iter_modules([path])}
    found |= {folder.name for folder in bundled_folders() if _holds(folder, kind)}
    found |= {entry.name for entry in declared(kind)}
    return found | {folder.name for folder in installed_folders() if _holds(folder, kind)}


def bundled_folders() -> Iterator[Folder]:
    """Yield the folders of fedloom's own plug-ins."""
    for kind in Kind:
        package = f"fedloom.{kind}"
        for path in package_paths(package):
            for module in iter_modules([path]):
                if module.ispkg:
                    yield Folder(kind, module.name, f"{package}.{module.name}", Path(path, module.name))


def installed_folders() -> Iterator[Folder]:
    """Yield the packages that entry points name; an entry point that names a module or an object has no folder."""
    for entry in _entry_points():
        if not entry.attr:
            kind = Kind(entry.group.removeprefix("fedloom."))
            for path in package_paths(entry.module):
                yield Folder(kind, entry.name, entry.module, Path(path))


def package_paths(dotted: str) -> Sequence[str]:
    """Return the folders of a package's modules; empty if it is not a package."""
    spec = module_spec(dotted)
    return list(spec.submodule_search_locations or ()) if spec is not None else ()


def is_package(dotted: str) -> bool:
    """Return whether there is a package, with an `__init__.py`, by this dotted name."""
    spec = module_spec(dotted)
    return spec is not None and spec.submodule_search_locations is not None


def module_spec(dotted: str) -> ModuleSpec | None:
    """Find a module by its dotted name without importing its parent packages; None if it does not exist.

    A folder without an `__init__.py` does not count as a package: a removed plug-in may leave one.
    """
    top, *steps = dotted.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        return None
    name = top
    for step in steps:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{step}"
        spec = _spec_below(spec.submodule_search_locations, name)
    return spec if spec is not None and spec.origin is not None else None


def _spec_below(paths: Sequence[str], dotted: str) -> ModuleSpec | None:
    """Find a module in the folders of its package; without one, a folder of that name."""
    finders = [finder for path in paths if (finder := get_importer(path)) is not None]
    specs = [spec for finder in finders if (spec := finder.find_spec(dotted)) is not None]
    return next((spec for spec in specs if spec.origin is not None), specs[0] if specs else None)


def _holds(folder: Folder, kind: Kind) -> bool:
    return folder.kind is kind or (folder.path / kind.section / "__init__.py").is_file()


def declared(kind: Kind, name: str | None = None) -> list[EntryPoint]:
    """Return the entry points that installed packages declare for a kind, or those of one name."""
    found = _declared(_installation())[kind]
    return [entry for entry in found if name in (None, entry.name)]


def _entry_points() -> Iterator[EntryPoint]:
    for kind in Kind:
        yield from declared(kind)


def _installation() -> tuple[tuple[str, int], ...]:
    """Return the folders that packages are imported from, each with the time of its last change; nanoseconds."""
    folders = ((path, Path(path)) for path in sys.path)
    return tuple((path, folder.stat().st_mtime_ns if folder.is_dir() else 0) for path, folder in folders)


@functools.lru_cache(maxsize=4)
def _declared(installation: tuple[tuple[str, int], ...]) -> Mapping[Kind, tuple[EntryPoint, ...]]:
    """Read the entry points of all kinds, once: with many packages installed that takes 10 to 20 ms a kind."""
    return {kind: tuple(entry_points(group=f"fedloom.{kind}")) for kind in Kind}
