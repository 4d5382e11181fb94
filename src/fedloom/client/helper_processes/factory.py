"""A helper's factory by name, so that another process can import it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedloom.core.errors import ClientFailed
from fedloom.core.protocols import Resources
from fedloom.core.registry import file_alias, load_file

ONE_CORE = Resources()
"""Default resources of a helper."""


@dataclass(frozen=True, slots=True)
class FactoryRef:
    """A top-level callable of a module."""

    module: str
    file: str | None
    """Path of the plug-in's file or folder, if it is one, which cannot be imported by name."""
    name: str

    @classmethod
    def of(cls, factory: Callable[..., object]) -> FactoryRef:
        """Name a factory.

        Raises:
            ClientFailed: another process cannot import it.
        """
        module, name = factory.__module__, factory.__qualname__
        loaded = sys.modules.get(module)
        if loaded is None or vars(loaded).get(name) is not factory or module == "__main__":
            raise ClientFailed(
                f"helpers.start: expected a top-level function or class of an importable module, got {module}.{name}. "
                "Its process imports it by name; move it to the top level of a module"
            )
        return cls(module, _path_of(module), name)

    def load(self) -> Callable[..., object]:
        """Import and return the factory."""
        if self.file is not None:
            load_file(Path(self.file))
        found: Callable[..., object] = vars(importlib.import_module(self.module))[self.name]
        return found


def _path_of(module: str) -> str | None:
    """Return the file or folder that a module, or the package it is in, was loaded from by its path; else None."""
    top = sys.modules[module.partition(".")[0]]
    paths = [*vars(top).get("__path__", ()), *([top.__file__] if top.__file__ else [])]
    return next((path for path in paths if file_alias(Path(path)) == top.__name__), None)
