"""The installed packages that an experiment's parts import, found in their source: nothing is imported for it."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedloom.core.config import Experiment
from fedloom.core.kinds import SECTIONS
from fedloom.core.plugin_folders import module_spec, package_paths

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "PyYAML", "cv2": "opencv-python"}
"""Packages whose distribution has another name, the usual ones; others are looked up, which takes longer."""
_SHARED = "._"
"""In the dotted name of a module of fedloom's that plug-ins share."""


def versions(experiment: Experiment, code: Sequence[Path]) -> dict[str, str]:
    """Return the versions of the packages that the experiment's plug-ins and a user's code import.

    Args:
        experiment: names the plug-ins.
        code: files and folders of the user's.

    Returns:
        The version of each distribution, sorted by name. A module that belongs to none is left out.
    """
    settings = [experiment.__dict__[section] for section in SECTIONS]
    homes = {type(each).__module__.rpartition(".")[0] for each in settings if each is not None}
    tops, seen = set[str](), set[str]()
    waiting = sorted(home for home in homes if home)
    named = {name for path in code for name in _imported_by(path)}
    while waiting or named:
        tops |= {name.partition(".")[0] for name in named}
        waiting += sorted(name for name in named if name.startswith("fedloom.") and _SHARED in name)
        named = set()
        if not waiting:
            break
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            tops.add(module.partition(".")[0])
            named = {name for path in _files_of(module) for name in _imported_by(path)}
    found = (_version(top) for top in tops - sys.stdlib_module_names)
    return dict(sorted(pair for pair in found if pair is not None))


def _files_of(module: str) -> Iterator[Path]:
    """Yield the source of a module, or of a package with all below it."""
    folders = package_paths(module)
    yield from (Path(folder) for folder in folders)
    spec = None if folders else module_spec(module)
    if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
        yield Path(spec.origin)


def _imported_by(place: Path) -> Iterator[str]:
    """Yield the dotted names that a file, or a folder's files, import; a file that cannot be read has none."""
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module


def _version(top: str) -> tuple[str, str] | None:
    """Return the distribution of a top-level module, and its version; None if it has none."""
    name = _DISTRIBUTIONS.get(top, top)
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = _distributions().get(top)
        return (found[0], importlib.metadata.version(found[0])) if found else None


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
