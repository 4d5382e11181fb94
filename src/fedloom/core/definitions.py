"""Finds the TOML files that come with fedloom and with methods: presets and studies, by name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from fedloom.core.errors import ConfigError
from fedloom.core.plugin_folders import bundled_folders, installed_folders, package_paths


def found(what: Literal["presets", "studies"]) -> dict[str, Path]:
    """Find the platform's own files, `fedloom/presets/*.toml`, and those of methods, `<method>/presets/*.toml`.

    Returns:
        Each file by its name without `.toml`, sorted by name. No package is imported.

    Raises:
        ConfigError: two files have one name.
    """
    files = dict[str, Path]()
    for folder in _folders(what):
        for path in sorted(folder.glob("*.toml")):
            other = files.setdefault(path.stem, path)
            if other != path:
                raise ConfigError(f"{what}: two files are named {path.stem!r}: {other} and {path}; rename one of them")
    return dict(sorted(files.items()))


def _folders(what: str) -> Iterator[Path]:
    """Yield every folder once, though several entry points may name one package."""
    methods = (folder.path / what for folder in chain(bundled_folders(), installed_folders()))
    yield from dict.fromkeys(chain(map(Path, package_paths(f"fedloom.{what}")), methods))
