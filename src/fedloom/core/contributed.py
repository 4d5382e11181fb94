"""Finds the modules that a plug-in's folder contributes besides its plug-ins, by their place; imported on first use.

    commands/NAME.py   `build_command() -> typer.Typer`: the verb NAME of the command line; the help shows the first
                       line of the module's docstring
    loader.py          `describes(folder) -> bool` and `load(folder, overrides) -> Experiment`: experiments of a user's
                       folders, given as `Path`; the first line of its docstring says which folders

Definitions (`presets/NAME.toml`, `studies/NAME.toml`) are `core.definitions`'.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from fedloom.core.errors import FedloomError, PluginInvalid
from fedloom.core.extras import needed_by
from fedloom.core.plugin_faults import plugin_fault
from fedloom.core.plugin_folders import bundled_folders, installed_folders


@dataclass(frozen=True, slots=True)
class Contributed:
    """One module of a plug-in's folder."""

    plugin: str
    """Name of the folder's plug-in."""
    dotted: str
    path: Path

    @property
    def name(self) -> str:
        """Return the file's name, which is the command's."""
        return self.path.stem

    @property
    def bundled(self) -> bool:
        """Return whether it comes with fedloom."""
        return self.dotted.startswith("fedloom.")

    @property
    def summary(self) -> str:
        """Return the first line of the module's docstring; imports nothing."""
        try:
            docstring = ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8")))
        except (OSError, SyntaxError, UnicodeDecodeError):
            docstring = None
        return (docstring or "").partition("\n")[0]

    def call(self, function: str, *arguments: object) -> object:
        """Import the module and call one of its functions.

        Raises:
            PackageMissing: it needs an optional package that is not installed.
            PluginInvalid: it cannot be imported, has no such function, or raised.
        """
        what = f"{self.path.name} of plug-in {self.plugin!r}"
        try:
            with needed_by(what):
                found = vars(importlib.import_module(self.dotted)).get(function)
                if not callable(found):
                    raise PluginInvalid(f"{self.path}: expected a function {function}, found {found!r}")
                return found(*arguments)
        except FedloomError:
            raise
        except Exception as exc:
            if self.bundled:  # a fault of fedloom
                raise
            raise plugin_fault(f"{what}, {function}", exc, str(self.path)) from exc


def commands() -> list[Contributed]:
    """Return the verbs of the command line that plug-ins contribute, by name; imports none of them."""
    return sorted(_modules("commands/*.py"), key=lambda each: (each.name, each.dotted))


def loaders() -> list[Contributed]:
    """Return what makes experiments of folders, by the plug-in's name; imports none of them."""
    return sorted(_modules("loader.py"), key=lambda each: (each.plugin, each.dotted))


def _modules(pattern: str) -> Iterator[Contributed]:
    """Yield each module once, though several entry points may name one package."""
    seen = set[str]()
    for folder in chain(bundled_folders(), installed_folders()):
        for path in folder.path.glob(pattern):
            dotted = ".".join([folder.package, *path.relative_to(folder.path).with_suffix("").parts])
            if not path.name.startswith("_") and dotted not in seen:
                seen.add(dotted)
                yield Contributed(folder.name, dotted, path)
